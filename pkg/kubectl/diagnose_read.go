package kubectl

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// askAtOnce is how many programs run at once: the API server carries each.
const askAtOnce = 8

// asker runs a program that reads nothing in a container of a pod of Godwit's, and returns what it wrote; what it wrote to stderr is in the error.
type asker func(ctx context.Context, pod, container string, args ...string) (string, error)

// ask implements asker.
func (c cluster) ask(ctx context.Context, pod, name string, args ...string) (string, error) {
	return output(ctx, c.containers, container{pod: client.ObjectKey{Namespace: c.system, Name: pod}, name: name}, args...)
}

// reading collects facts. Safe for concurrent use once the API was read.
type reading struct {
	cluster
	ask asker
	mu  sync.Mutex
	facts
}

// look reads everything. The error is of what nothing can be said without: the API.
func (c cluster) look(ctx context.Context, ask asker, now time.Time) (*facts, error) {
	r := &reading{cluster: c, ask: ask, facts: facts{now: now, system: c.system, certificates: map[string]time.Time{}, switches: map[string]switchOf{}}}
	if err := r.readAPI(ctx); err != nil {
		return nil, err
	}
	central := r.component("ovn-central")
	if len(central) == 0 && len(r.component("ovs-node")) == 0 {
		r.miss(rough, "OVN's databases and the nodes' Open vSwitch", errors.New("they do not run as pods of Godwit's"), "look at them where they run: docs/runbooks.md has the commands")
		return &r.facts, nil
	}
	r.ovn = true
	var g errgroup.Group // its parts note what they cannot read, and go on
	g.SetLimit(askAtOnce)
	for _, p := range central {
		for kind := range databaseNames() {
			g.Go(func() error { r.readMember(ctx, p.Name, kind); return nil })
		}
	}
	for _, p := range r.component("ovs-node") {
		g.Go(func() error { r.readSwitch(ctx, p); return nil })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	slices.SortFunc(r.members, func(a, b member) int { return strings.Compare(a.database+a.pod, b.database+b.pod) }) // they came as they answered
	r.readDatabases(ctx)
	slices.SortFunc(r.unread, func(a, b verdict) int { return strings.Compare(a.finding, b.finding) })
	return &r.facts, ctx.Err()
}

func databaseNames() map[string]string {
	return map[string]string{"nb": "OVN_Northbound", "sb": "OVN_Southbound"}
}

// miss notes what could not be read.
func (r *reading) miss(g grade, what string, err error, remedy string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unread = append(r.unread, verdict{g, fmt.Sprintf("%s could not be looked at: %s", what, passing(err.Error())), remedy})
}

func (r *reading) readAPI(ctx context.Context) error {
	var nodes corev1.NodeList
	var pods corev1.PodList
	var ports v1alpha1.PortList
	var moves v1alpha1.PortMigrationList
	for _, l := range []struct {
		list client.ObjectList
		what string
	}{{&nodes, "Nodes"}, {&pods, "the pods of all namespaces"}, {&ports, "the Ports of all namespaces"}, {&moves, "the PortMigrations of all namespaces"}} {
		if err := r.api.List(ctx, l.list); err != nil {
			return fmt.Errorf("list %s: %w", l.what, explained(err))
		}
	}
	nodes.Items = slices.DeleteFunc(nodes.Items, func(n corev1.Node) bool { return n.Status.NodeInfo.OperatingSystem == "windows" }) // Godwit is for Linux
	r.nodes, r.pods, r.ports, r.moves = nodes.Items, pods.Items, ports.Items, moves.Items
	var config corev1.ConfigMap
	if r.get(ctx, "godwit-config", &config) {
		r.settings = config.Data
	}
	var lease coordinationv1.Lease
	if r.get(ctx, "godwit-controller", &lease) {
		r.lease = &lease
	}
	if strings.HasPrefix(r.settings["GODWIT_SB_REMOTE"], "ssl:") {
		for _, name := range []string{"godwit-ovn-ca", "godwit-ovn-admin-ca", "godwit-ovn-server", "godwit-ovn-admin"} {
			r.readCertificate(ctx, name)
		}
	}
	return nil
}

// get reads an object of Godwit's namespace; not being there is no error.
func (r *reading) get(ctx context.Context, name string, into client.Object) bool {
	err := r.api.Get(ctx, client.ObjectKey{Namespace: r.facts.system, Name: name}, into)
	if err != nil && !apierrors.IsNotFound(err) {
		r.miss(rough, fmt.Sprintf("%T %s", into, name)[len("*v1."):], err, "this needs the right to get it in namespace "+r.facts.system)
	}
	return err == nil
}

// readCertificate keeps when a Secret's certificate expires, and nothing else of it.
func (r *reading) readCertificate(ctx context.Context, name string) {
	var secret corev1.Secret
	if !r.get(ctx, name, &secret) {
		return
	}
	block, _ := pem.Decode(secret.Data[corev1.TLSCertKey])
	if block == nil {
		r.miss(stuck, "Secret "+name, errors.New("it has no certificate in tls.crt"), "delete it: an issuer makes it anew (docs/security.md)")
		return
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		r.miss(stuck, "Secret "+name, err, "delete it: an issuer makes it anew (docs/security.md)")
		return
	}
	r.certificates[name] = certificate.NotAfter
}

func (r *reading) question(ctx context.Context, pod, container string, args ...string) (string, bool) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	said, err := r.ask(ctx, pod, container, args...)
	if err != nil {
		r.miss(stuck, fmt.Sprintf("container %s of pod %s", container, pod), err, "does it run? kubectl -n "+r.facts.system+" describe pod "+pod)
	}
	return said, err == nil
}

func (r *reading) readMember(ctx context.Context, pod, kind string) {
	said, ok := r.question(ctx, pod, kind, "ovs-appctl", "-t", "/run/ovn/ovn"+kind+"_db.ctl", "cluster/status", databaseNames()[kind])
	if !ok {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.members = append(r.members, parseMember(pod, databaseNames()[kind], said))
}

// readSwitch asks a node's Open vSwitch and its ovn-controller.
func (r *reading) readSwitch(ctx context.Context, p *corev1.Pod) {
	said, ok := r.question(ctx, p.Name, "vswitchd", "ovs-vsctl", "--timeout=15", "--format=json", "--columns=external_ids", "list", "Open_vSwitch",
		"--", "--columns=name,type,error,external_ids,options,bfd_status,ofport,statistics", "list", "Interface")
	if !ok {
		return
	}
	tables, err := parseTables(said)
	if err != nil || len(tables) != 2 || len(tables[0]) != 1 {
		r.miss(stuck, "Open vSwitch on "+p.Spec.NodeName, errors.Join(errors.New("its database does not have what was asked for"), err), "is it of this Godwit's version? kubectl ovn --version")
		return
	}
	s := switchOf{ids: tables[0][0].pairs("external_ids"), interfaces: readInterfaces(tables[1])}
	for _, c := range r.component("ovn-controller") {
		if c.Spec.NodeName == p.Spec.NodeName {
			s.controller = r.askController(ctx, c.Name)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.switches[p.Spec.NodeName] = s
}

// askController says why an ovn-controller is not well, empty if it is.
func (r *reading) askController(ctx context.Context, pod string) string {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	_, err := r.ask(ctx, pod, "ovn-controller", "/usr/bin/godwit-ovn", "probe", "controller")
	var exit *ExitError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &exit) && exit.stderr != "":
		return strings.TrimPrefix(exit.stderr, "godwit-ovn: ")
	}
	return err.Error()
}

// readDatabases reads the tables of both where they are led, or else anywhere.
func (r *reading) readDatabases(ctx context.Context) {
	at := map[string]string{}
	for _, m := range r.members {
		if at[m.database] == "" || m.Leads() {
			at[m.database] = m.pod
		}
	}
	if pod := at["OVN_Northbound"]; pod != "" {
		tables, ok := r.tables(ctx, pod, "nb", 1, "ovn-nbctl", "--timeout=15", "--no-leader-only", "--format=json", "--columns=name,type,addresses,options", "list", "Logical_Switch_Port")
		if ok {
			r.facts.rows = readRows(tables[0])
		}
	}
	if pod := at["OVN_Southbound"]; pod != "" {
		tables, ok := r.tables(ctx, pod, "sb", 3, "ovn-sbctl", "--timeout=15", "--no-leader-only", "--format=json", "--columns=_uuid,name,encaps", "list", "Chassis",
			"--", "--columns=_uuid,ip", "list", "Encap", "--", "--columns=logical_port,chassis,additional_chassis,up", "list", "Port_Binding")
		if ok {
			r.chassis, r.bindings = readSouth(tables[0], tables[1], tables[2])
		}
	}
}

func (r *reading) tables(ctx context.Context, pod, container string, want int, args ...string) ([][]dbRow, bool) {
	said, ok := r.question(ctx, pod, container, args...)
	if !ok {
		return nil, false
	}
	tables, err := parseTables(said)
	if err != nil || len(tables) != want {
		r.miss(stuck, fmt.Sprintf("the database at %s", pod), errors.Join(fmt.Errorf("%d tables came, want %d", len(tables), want), err), "is it of this Godwit's version? kubectl ovn --version")
		return nil, false
	}
	return tables, true
}
