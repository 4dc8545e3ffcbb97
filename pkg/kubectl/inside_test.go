package kubectl

import (
	"bytes"
	"net/netip"
	"testing"
)

// rowsOf reads a table, which must be right.
func rowsOf(t *testing.T, text string) []row {
	t.Helper()
	rows, err := parseRows(text)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// A VM's port in the middle of a migration, with an ACL that somebody has added by hand.
func TestInside(t *testing.T) {
	in := inside{
		port: "vm/shop/web1/default", node: "node1", addresses: []netip.Addr{netip.MustParseAddr("10.244.0.7"), netip.MustParseAddr("fd00:10:244::7")},
		switchPorts: rowsOf(t, `{"headings":["_uuid","up","options"],"data":[[["uuid","60408d03-3b22-406e-8e81-1de969c12de3"],true,["map",[["requested-chassis","node1,node2"],["activation-strategy","rarp"]]]]]}`),
		groups:      rowsOf(t, `{"headings":["name","acls"],"data":[["godwit_s_abc",["uuid","a1"]],["godwit_np_ingress",["set",[["uuid","a2"],["uuid","a3"]]]]]}`),
		acls: rowsOf(t, `{"headings":["_uuid","action","direction","match","external_ids"],"data":[
			[["uuid","a1"],"allow-related","to-lport","ip4",["map",[["godwit.dev/owner","policy"],["godwit.dev/namespace","shop"],["godwit.dev/name","web"]]]],
			[["uuid","a2"],"drop","to-lport","ip",["map",[["godwit.dev/owner","network"],["godwit.dev/rule","ingress/drop"]]]],
			[["uuid","a3"],"drop","to-lport","tcp.dst == 25",["map",[]]]]}`),
		balancers: rowsOf(t, `{"headings":["name","vips"],"data":[["service/shop/web/tcp",["map",[["10.96.0.9:80","10.244.0.3:8080,10.244.0.7:8080"]]]],
			["service/shop/six/tcp",["map",[["[fd00::9]:80","[fd00:10:244::7]:8080"]]]],["service/shop/other/tcp",["map",[["10.96.0.8:80","10.244.0.70:8080"]]]]]}`),
		bindings:   rowsOf(t, `{"headings":["chassis","additional_chassis","up"],"data":[[["uuid","c1"],["uuid","c2"],true]]}`),
		chassis:    rowsOf(t, `{"headings":["_uuid","name"],"data":[[["uuid","c1"],"node1"],[["uuid","c2"],"node2"]]}`),
		interfaces: rowsOf(t, `{"headings":["name","ofport","external_ids"],"data":[["gwdd9c2d02e9f",5,["map",[["ovn-installed","true"]]]]]}`),
	}
	var out bytes.Buffer
	(&table{out: &out}).rows(in.tell()...)
	out.WriteString("\n")
	in.interfaces, in.bindings[0]["up"], in.bindings[0]["chassis"] = nil, false, []any{"set", []any{}}
	(&table{out: &out}).rows(in.tell()...)
	out.WriteString("\n")
	(&table{out: &out}).rows(inside{port: "pod/shop/new/default"}.tell()...)
	golden(t, "inside.txt", out.String())
}
