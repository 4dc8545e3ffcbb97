package integration

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/service"
	"github.com/godwit-cni/godwit/pkg/topology"
	"github.com/godwit-cni/godwit/test/lab/ovntest"
)

// storedBalancers is what a database has of Services, in words, a line for each thing.
func storedBalancers(t *testing.T, central *ovntest.OVNCentral) []string {
	t.Helper()
	rows := central.Dump(t, nbdb.LoadBalancerTable, nbdb.LoadBalancerGroupTable, nbdb.ChassisTemplateVarTable, nbdb.AddressSetTable, nbdb.LogicalSwitchTable)
	var out []string
	members, group := map[string]bool{}, ""
	for _, r := range rows[nbdb.LoadBalancerGroupTable] {
		group = uuidOf(r["_uuid"])
		for _, lb := range elementsOf(r["load_balancer"]) {
			members[uuidOf(lb)] = true
		}
	}
	for _, r := range rows[nbdb.LoadBalancerTable] {
		if !members[uuidOf(r["_uuid"])] {
			out = append(out, fmt.Sprintf("%s is not in the group", r["name"]))
		}
		out = append(out, describe(r["name"], r["protocol"], textMap(r["options"]), textMap(r["external_ids"]), textMap(r["vips"])))
	}
	for _, r := range rows[nbdb.ChassisTemplateVarTable] {
		for name, value := range textMap(r["variables"]) {
			out = append(out, fmt.Sprintf("%s: %s = %s", r["chassis"], name, value))
		}
	}
	for _, r := range rows[nbdb.AddressSetTable] {
		if name := r["name"].(string); strings.HasPrefix(name, "godwit_services_local_") {
			for _, a := range elementsOf(r["addresses"]) {
				out = append(out, fmt.Sprintf("%s has %s", name, a))
			}
		}
	}
	for _, r := range rows[nbdb.LogicalSwitchTable] {
		if strings.HasPrefix(r["name"].(string), "subnet/") && uuidOf(r["load_balancer_group"]) != group {
			out = append(out, fmt.Sprintf("%s does not name the group", r["name"]))
		}
	}
	slices.Sort(out)
	return out
}

func describe(name, protocol any, options, ids, vips map[string]string) string {
	return fmt.Sprintf("%s %s options=%v ids=%v vips=%v", name, protocol, options, ids, vips)
}

func describeRows(rows topology.ServiceRows) []string {
	var out []string
	for _, lb := range rows.LoadBalancers {
		out = append(out, describe(lb.Name, *lb.Protocol, lb.Options, lb.ExternalIDs, lb.Vips))
	}
	for chassis, variables := range rows.Variables {
		for name, value := range variables {
			out = append(out, fmt.Sprintf("%s: %s = %s", chassis, name, value))
		}
	}
	for _, a := range rows.Local {
		out = append(out, fmt.Sprintf("%s has %s", topology.LocalServicesSet(a), a))
	}
	return out
}

// wantedBalancers is what it should have for the objects that are in the API, VMs' holds aside.
func (e *env) wantedBalancers(t *testing.T) ([]string, error) {
	var list corev1.ServiceList
	var endpoints discoveryv1.EndpointSliceList
	var ports v1alpha1.PortList
	var subnets v1alpha1.SubnetList
	for _, l := range []client.ObjectList{&list, &endpoints, &ports, &subnets} {
		if err := e.api.List(t.Context(), l); err != nil {
			return nil, err
		}
	}
	of := map[types.NamespacedName][]*discoveryv1.EndpointSlice{}
	for i := range endpoints.Items {
		es := &endpoints.Items[i]
		k := key(es.Namespace, es.Labels[discoveryv1.LabelServiceName])
		of[k] = append(of[k], es)
	}
	x := service.New()
	reserved := []netip.Prefix{netip.MustParsePrefix("100.64.0.0/16"), netip.MustParsePrefix("fd98::/64")}
	for i := range subnets.Items {
		for _, c := range subnets.Items[i].Spec.CIDRs {
			reserved = append(reserved, netip.MustParsePrefix(c))
		}
	}
	x.Reserve(reserved)
	vms := service.NewVMs(x)
	for i := range ports.Items {
		vms.Set(&ports.Items[i], time.Now())
	}
	for i := range list.Items {
		x.Set(&list.Items[i], of[client.ObjectKeyFromObject(&list.Items[i])])
	}
	x.Take()
	var out []string
	for _, s := range x.Services() {
		out = append(out, describeRows(topology.Service(s))...)
	}
	slices.Sort(out)
	return out, nil
}

// servicesAsWanted waits until the database has what the objects in the API come to.
func (e *env) servicesAsWanted(t *testing.T) {
	t.Helper()
	eventually(t, func() error {
		want, err := e.wantedBalancers(t)
		if err != nil {
			return err
		}
		if d := cmp.Diff(want, storedBalancers(t, e.central)); d != "" {
			return errors.New("rows of Services (-want +got):\n" + d)
		}
		return nil
	})
}

// vips are those of a Service's TCP load balancer.
func (e *env) vips(t *testing.T, k types.NamespacedName) map[string]string {
	t.Helper()
	for _, r := range e.central.Dump(t, nbdb.LoadBalancerTable)[nbdb.LoadBalancerTable] {
		if r["name"] == string(ident.LoadBalancer(k.Namespace, k.Name, "tcp")) {
			return textMap(r["vips"])
		}
	}
	return nil
}

// goesTo waits until a Service's first address goes to these, separated by commas; empty for refused.
func (e *env) goesTo(t *testing.T, k types.NamespacedName, backends string) {
	t.Helper()
	eventually(t, func() error {
		vips := e.vips(t, k)
		if got := slices.Sorted(maps.Values(vips)); len(got) == 0 || got[0] != backends {
			return fmt.Errorf("Service %s has %v, want an address that goes to %q", k, vips, backends)
		}
		return nil
	})
}

// versions are those of the rows of tables: the database changes a row's with every change of it.
func versions(t *testing.T, central *ovntest.OVNCentral) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, table := range []string{nbdb.LoadBalancerTable, nbdb.LoadBalancerGroupTable, nbdb.LogicalSwitchTable, nbdb.ChassisTemplateVarTable, nbdb.AddressSetTable} {
		r := central.Transact(t, map[string]any{"op": ovsdb.OperationSelect, "table": table, "where": []any{}, "columns": []string{"_uuid", "_version"}})
		for _, row := range r[0].Rows {
			out[table+" "+uuidOf(row["_uuid"])] = uuidOf(row["_version"])
		}
	}
	return out
}

// changedRows are those that are others, new or gone.
func changedRows(before, after map[string]string) []string {
	var out []string
	for row, v := range after {
		if before[row] != v {
			out = append(out, row)
		}
	}
	for row := range before {
		if _, ok := after[row]; !ok {
			out = append(out, row)
		}
	}
	slices.Sort(out)
	return out
}

// aService listens on TCP port 80.
func aService(k types.NamespacedName, change ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: k.Namespace, Name: k.Name}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}
	for _, c := range change {
		c(s)
	}
	return s
}

// endpointSlice has port 8080 and endpoints in words: ADDRESS NODE STATE.
func endpointSlice(k types.NamespacedName, number int, endpoints ...string) *discoveryv1.EndpointSlice {
	name, protocol, port := "http", corev1.ProtocolTCP, int32(8080)
	es := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: k.Namespace, Name: fmt.Sprintf("%s-%d", k.Name, number), Labels: map[string]string{discoveryv1.LabelServiceName: k.Name}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Protocol: &protocol, Port: &port}},
	}
	for _, text := range endpoints {
		f := strings.Fields(text)
		ready, terminating := f[2] == "ready", f[2] == "ending"
		serving := ready || terminating
		es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{f[0]}, NodeName: &f[1], Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		})
	}
	return es
}

// lists writes an EndpointSlice anew.
func (e *env) lists(t *testing.T, k types.NamespacedName, number int, endpoints ...string) {
	t.Helper()
	next := endpointSlice(k, number, endpoints...)
	var es discoveryv1.EndpointSlice
	if err := e.api.Get(t.Context(), client.ObjectKeyFromObject(next), &es); err != nil {
		if err := e.api.Create(t.Context(), next); err != nil {
			t.Fatal(err)
		}
		return
	}
	es.Endpoints = next.Endpoints
	if err := e.api.Update(t.Context(), &es); err != nil {
		t.Fatal(err)
	}
}
