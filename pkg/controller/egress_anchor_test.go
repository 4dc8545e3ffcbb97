package controller

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/migration"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

func TestAnchorOf(t *testing.T) {
	for name, c := range map[string]struct {
		has, status string // what the row says, and the Port's status
		version     string // the instance that the row is for
		requested   string // what is decided
		elsewhere   bool   // the Subnet has another egress
		want        string
	}{
		"it starts":                             {requested: "n1", want: "n1"},
		"it starts again elsewhere":             {has: "n1", version: "old", requested: "n2", want: "n2"},
		"it runs":                               {has: "n1", version: "vmi", requested: "n1", want: "n1"},
		"it moves":                              {has: "n1", version: "vmi", requested: "n1,n2", want: "n1"},
		"it has moved":                          {has: "n1", version: "vmi", requested: "n2", want: "n1"},
		"it moves on":                           {has: "n1", version: "vmi", requested: "n2,n3", want: "n1"},
		"its anchor is dead":                    {has: "dead", version: "vmi", requested: "n2", want: "n2"},
		"its anchor is dead, and it moves":      {has: "dead", version: "vmi", requested: "n2,n3", want: "n2"},
		"it stops":                              {has: "n1", version: "vmi", requested: string(ident.NoChassis), want: ""},
		"it ran before there were anchors":      {version: "vmi", requested: "n2", want: "n2"},
		"the database was lost":                 {status: "n1", requested: "n2", want: "n1"},
		"the Subnet leaves by nodes again":      {status: "n1", version: "vmi", requested: "n2", want: "n2"},
		"the status is an earlier instance's":   {status: "n1", version: "old", requested: "n2", want: "n2"},
		"its Subnet leaves elsewhere":           {requested: "n1", elsewhere: true, want: ""},
		"its Subnet leaves elsewhere since now": {has: "n1", version: "vmi", requested: "n2", elsewhere: true, want: ""},
	} {
		t.Run(name, func(t *testing.T) {
			row := &nbdb.LogicalSwitchPort{Options: map[string]string{}, ExternalIDs: map[string]string{}}
			for m, kv := range map[*map[string]string][2]string{&row.Options: {ident.OptionIfaceIDVer, c.version}, &row.ExternalIDs: {ident.KeyEgressNode, c.has}} {
				if kv[1] != "" {
					(*m)[kv[0]] = kv[1]
				}
			}
			o := observed{
				vmi:   &kubevirtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{UID: "vmi"}},
				rows:  map[string]*nbdb.LogicalSwitchPort{podNetwork: row},
				ports: map[string]*v1alpha1.Port{podNetwork: {Status: v1alpha1.PortStatus{EgressNode: c.status}}},
				alive: map[string]bool{"n1": true, "n2": true, "n3": true}, anchors: !c.elsewhere,
			}
			got := o.anchorOf(migration.PortDecision{Network: podNetwork, Want: migration.PortState{Requested: c.requested}})
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// What the Port says of the anchor is kept until the row of a database that was lost says it again, and no longer.
func TestPortAnchor(t *testing.T) {
	for name, c := range map[string]struct{ version, row, known, want string }{
		"the row is new":            {known: "n1", want: "n1"},
		"the row has it":            {version: "vmi", row: "n2", known: "n1", want: "n2"},
		"the VM was stopped":        {version: "vmi", known: "n1", want: ""},
		"there never was an anchor": {},
	} {
		row := portRow{options: map[string]string{ident.OptionIfaceIDVer: c.version}, egress: c.row}
		if got := row.anchor(c.known); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}
