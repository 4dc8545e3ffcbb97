package integration

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/controller"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/service"
)

// TestServiceRows runs the controller against what the pure part makes of the objects in the API.
func TestServiceRows(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.start(t)
	for _, n := range []string{"n1", "n2"} {
		e.node(t, n)
		e.central.Chassis(t, n)
	}
	e.defaultSubnet(t)
	e.namespace(t, "shop", nil)
	e.servicesAsWanted(t) // kubernetes.default
	for _, s := range []struct {
		name string
		run  func(*testing.T, *env)
	}{
		{"endpoints come, change and go", endpointsChange},
		{"a thousand endpoints", thousandEndpoints},
		{"an empty EndpointSlice in the middle of a rollout", emptySlice},
		{"made again within a second", madeAgain},
		{"internalTrafficPolicy Local", localService},
		{"addresses that it cannot have", refusedAddresses},
		{"rows changed by hand", changedByHand},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(t, e) })
		e.servicesAsWanted(t)
	}
	restartedServices(t, e) // no subtest: the controllers that it starts end with their test
	e.central.EmptyNB(t)
	e.servicesAsWanted(t)
}

// One endpoint more or less is one row, and nothing of it depends on how many Services there are.
func endpointsChange(t *testing.T, e *env) {
	k := key("shop", "web")
	e.create(t, aService(k))
	e.goesTo(t, k, "")
	e.lists(t, k, 1, "10.9.0.1 n1 ready", "10.9.0.2 n2 unready", "10.9.0.3 n2 ending")
	e.goesTo(t, k, "10.9.0.1:8080")
	for i := range 20 {
		e.create(t, aService(key("shop", fmt.Sprintf("other-%d", i))))
	}
	e.servicesAsWanted(t)
	transactions := e.journal.quiet(t)
	before := versions(t, e.central)
	e.lists(t, k, 1, "10.9.0.1 n1 ready", "10.9.0.2 n2 ready", "10.9.0.3 n2 ending")
	e.goesTo(t, k, "10.9.0.1:8080,10.9.0.2:8080")
	if changed := changedRows(before, versions(t, e.central)); len(changed) != 1 || !strings.HasPrefix(changed[0], nbdb.LoadBalancerTable) {
		t.Errorf("for one endpoint %v changed, want the one load balancer", changed)
	}
	if written := e.journal.since(transactions); len(written) != 1 {
		t.Errorf("transactions for one endpoint, want 1:\n%s", strings.Join(written, "\n"))
	}
	before = versions(t, e.central)
	e.lists(t, k, 1, "10.9.0.1 n1 ending", "10.9.0.2 n2 unready", "10.9.0.3 n2 unready")
	e.goesTo(t, k, "10.9.0.1:8080")
	if changed := changedRows(before, versions(t, e.central)); len(changed) != 1 {
		t.Errorf("%v changed, want one row", changed)
	}
	transactions = e.journal.quiet(t)
	before = versions(t, e.central)
	e.create(t, aService(key("shop", "another")))
	e.goesTo(t, key("shop", "another"), "")
	if changed := changedRows(before, versions(t, e.central)); len(changed) != 2 {
		t.Errorf("for one Service %v changed, want it and the group", changed)
	}
	if written := e.journal.since(transactions); len(written) != 1 {
		t.Errorf("transactions for one Service, want 1:\n%s", strings.Join(written, "\n"))
	}
}

func thousandEndpoints(t *testing.T, e *env) {
	k := key("shop", "big")
	e.create(t, aService(k))
	for i := range 10 {
		var endpoints []string
		for j := range 100 {
			endpoints = append(endpoints, fmt.Sprintf("10.8.%d.%d n1 ready", i, j))
		}
		e.lists(t, k, i, endpoints...)
	}
	eventually(t, func() error {
		for _, v := range e.vips(t, k) {
			if n := strings.Count(v, ",") + 1; n != 1000 {
				return fmt.Errorf("%d endpoints, want 1000", n)
			}
			return nil
		}
		return fmt.Errorf("Service %s has no address", k)
	})
	before := versions(t, e.central)
	e.lists(t, k, 3)
	e.servicesAsWanted(t)
	if changed := changedRows(before, versions(t, e.central)); len(changed) != 1 {
		t.Errorf("%v changed, want one row", changed)
	}
}

func emptySlice(t *testing.T, e *env) {
	k := key("shop", "rollout")
	e.create(t, aService(k))
	e.lists(t, k, 1, "10.9.1.1 n1 ready")
	e.goesTo(t, k, "10.9.1.1:8080")
	e.lists(t, k, 2) // the next ReplicaSet's, still empty
	e.lists(t, k, 1, "10.9.1.1 n1 ending")
	e.goesTo(t, k, "10.9.1.1:8080")
	e.lists(t, k, 1)
	e.goesTo(t, k, "")
	e.lists(t, k, 2, "10.9.1.2 n2 ready")
	e.goesTo(t, k, "10.9.1.2:8080")
}

func madeAgain(t *testing.T, e *env) {
	k := key("shop", "again")
	first := aService(k)
	e.create(t, first)
	clusterIP := first.Spec.ClusterIP
	pinned := func(s *corev1.Service) { s.Spec.ClusterIP = clusterIP }
	e.lists(t, k, 1, "10.9.2.1 n1 ready")
	e.goesTo(t, k, "10.9.2.1:8080")
	for i := range 5 {
		s := aService(k, pinned)
		if err := e.api.Delete(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		s = aService(k, pinned, func(s *corev1.Service) { s.Spec.Ports[0].Port = int32(90 + i) })
		e.create(t, s)
		e.servicesAsWanted(t)
		if got, want := slices.Collect(maps.Keys(e.vips(t, k))), fmt.Sprintf("%s:%d", clusterIP, 90+i); len(got) != 1 || got[0] != want {
			t.Fatalf("the %dth has %v, want %s", i+1, got, want)
		}
	}
	other := aService(key("shop", "heir"), pinned) // the address goes to another Service at once
	if err := e.api.Delete(t.Context(), aService(k)); err != nil {
		t.Fatal(err)
	}
	e.create(t, other)
	e.servicesAsWanted(t)
}

func localService(t *testing.T, e *env) {
	k := key("shop", "local")
	local := corev1.ServiceInternalTrafficPolicyLocal
	e.create(t, aService(k, func(s *corev1.Service) { s.Spec.InternalTrafficPolicy = &local }))
	e.goesTo(t, k, "") // refused as long as there is none anywhere
	e.lists(t, k, 1, "10.9.3.1 n1 ready", "10.9.3.2 n1 ready")
	e.servicesAsWanted(t)
	before := versions(t, e.central)
	e.lists(t, k, 1, "10.9.3.1 n1 ready", "10.9.3.2 n1 unready")
	e.servicesAsWanted(t)
	if changed := changedRows(before, versions(t, e.central)); len(changed) != 1 || !strings.HasPrefix(changed[0], nbdb.ChassisTemplateVarTable) {
		t.Errorf("for one endpoint %v changed, want the node's variables", changed)
	}
	e.lists(t, k, 1, "10.9.3.1 n2 ready")
	e.servicesAsWanted(t)
	if err := e.api.Delete(t.Context(), aService(k)); err != nil {
		t.Fatal(err)
	}
	e.servicesAsWanted(t)
}

func refusedAddresses(t *testing.T, e *env) {
	e.create(t, aService(key("shop", "first"), func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"192.0.2.1"} }))
	e.servicesAsWanted(t)
	time.Sleep(1100 * time.Millisecond) // creation times have whole seconds
	e.create(t, aService(key("shop", "second"), func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"192.0.2.1", "10.244.0.9"} }))
	e.servicesAsWanted(t)
	if n := len(e.vips(t, key("shop", "second"))); n != 1 {
		t.Errorf("the second Service has %v", e.vips(t, key("shop", "second")))
	}
	for _, reason := range []service.Reason{service.ReasonTaken, service.ReasonReserved} {
		eventually(t, func() error {
			var list eventsv1.EventList
			if err := e.api.List(t.Context(), &list, client.InNamespace("shop")); err != nil {
				return err
			}
			for _, ev := range list.Items {
				if ev.Reason == string(reason) && ev.Regarding.Name == "second" && ev.Regarding.UID != "" {
					return nil
				}
			}
			return fmt.Errorf("no event %s of the second Service", reason)
		})
	}
	if err := e.api.Delete(t.Context(), aService(key("shop", "first"))); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if v := e.vips(t, key("shop", "second")); len(v) != 2 {
			return fmt.Errorf("the first is gone, and the second has %v", v)
		}
		return nil
	})
}

// What somebody changes by hand is mended by the next comparison; a write that misses its row brings that about at once.
func changedByHand(t *testing.T, e *env) {
	k := key("shop", "web")
	where := [][]any{{"name", "==", string(ident.LoadBalancer(k.Namespace, k.Name, "tcp"))}}
	e.central.Transact(t, map[string]any{"op": "delete", "table": nbdb.LoadBalancerTable, "where": where})
	e.lists(t, k, 1, "10.9.0.7 n1 ready")
	e.goesTo(t, k, "10.9.0.7:8080")
	e.central.Transact(t, map[string]any{"op": "insert", "table": nbdb.LoadBalancerTable, "row": map[string]any{"name": string(ident.LoadBalancer("shop", "twice", "tcp")),
		"external_ids": []any{"map", [][]any{{ident.OwnerKey, ident.OwnerService}, {ident.KeyNamespace, "shop"}, {ident.KeyName, "twice"}}}}})
	e.create(t, aService(key("shop", "twice")))
}

func restartedServices(t *testing.T, e *env) {
	k := key("shop", "web")
	e.stop()
	e.lists(t, k, 1, "10.9.0.8 n1 ready")
	if err := e.api.Delete(t.Context(), aService(key("shop", "big"))); err != nil {
		t.Fatal(err)
	}
	e.create(t, aService(key("shop", "late")))
	name := string(ident.LoadBalancer("shop", "rollout", "tcp"))
	where := [][]any{{"name", "==", name}}
	e.central.Transact(t,
		map[string]any{"op": "update", "table": nbdb.LoadBalancerTable, "where": where, "row": map[string]any{"vips": []any{"map", [][]any{{"1.2.3.4:5", "6.7.8.9:1"}}}}},
		map[string]any{"op": "insert", "table": nbdb.LoadBalancerTable, "row": map[string]any{"name": name,
			"external_ids": []any{"map", [][]any{{ident.OwnerKey, ident.OwnerService}, {ident.KeyNamespace, "shop"}, {ident.KeyName, "rollout"}}}}},
		map[string]any{"op": "update", "table": nbdb.LoadBalancerGroupTable, "where": []any{}, "row": map[string]any{"load_balancer": []any{"set", []any{}}}},
		map[string]any{"op": "insert", "table": nbdb.LoadBalancerTable, "row": map[string]any{"name": "somebody's"}})
	e.start(t)
	eventually(t, func() error {
		got := storedBalancers(t, e.central)
		i := slices.IndexFunc(got, func(line string) bool { return strings.HasPrefix(line, "somebody's is not in the group") })
		if i < 0 {
			return fmt.Errorf("the load balancer of somebody else is gone, or in the group: %v", got)
		}
		return nil
	})
	e.central.Transact(t, map[string]any{"op": "delete", "table": nbdb.LoadBalancerTable, "where": [][]any{{"name", "==", "somebody's"}}})
	e.servicesAsWanted(t)
	e.stop()
	before := versions(t, e.central)
	e.start(t)
	e.lists(t, k, 1, "10.9.0.9 n1 ready")
	e.goesTo(t, k, "10.9.0.9:8080")
	if changed := changedRows(before, versions(t, e.central)); len(changed) != 1 {
		t.Errorf("a restart and one endpoint changed %v, want one row", changed)
	}
	e.stop()
	e.start(t, func(c *controller.Config) { c.Services = false })
	eventually(t, func() error {
		if got := storedBalancers(t, e.central); len(got) > 0 {
			return fmt.Errorf("with --services=false there is still %v", got)
		}
		return nil
	})
	e.stop()
	e.start(t)
	e.servicesAsWanted(t)
}

// TestServiceHoldsVM follows the endpoint of a VM that moves.
func TestServiceHoldsVM(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.installKubeVirt(t)
	e.start(t)
	for _, n := range []string{"n1", "n2"} {
		e.node(t, n)
		e.central.Chassis(t, n)
	}
	e.defaultSubnet(t)
	e.namespace(t, "move", nil)
	v := e.voyage(t, "db", "db")
	port := e.vmPort(t, key("move", "db"), v1alpha1.PortBound)
	ip := port.Status.IPs[0]
	k := key("move", "db")
	e.create(t, aService(k))
	e.lists(t, k, 1, ip+" n1 ready")
	e.goesTo(t, k, ip+":8080")
	v.begin(t, e)
	e.vmPort(t, key("move", "db"), v1alpha1.PortMigrating)
	e.lists(t, k, 1, ip+" n1 unready", ip+" n2 unready")
	e.stays(t, k, ip+":8080")
	e.stop() // a restart in the middle
	e.start(t)
	e.lists(t, k, 1, ip+" n1 unready", ip+" n2 ready")
	e.stays(t, k, ip+":8080")
	e.lists(t, k, 1)
	e.stays(t, k, ip+":8080")
	e.lists(t, k, 1, ip+" n2 unready")
	v.arrive(t, e)
	e.vmPort(t, key("move", "db"), v1alpha1.PortAttached)
	e.stays(t, k, ip+":8080")
	e.lists(t, k, 1, ip+" n2 ready")
	e.stays(t, k, ip+":8080")
	e.lists(t, k, 1, ip+" n2 unready") // it has arrived: now this counts
	e.goesTo(t, k, "")
}

// stays looks for a while whether a Service goes to the same backends all along.
func (e *env) stays(t *testing.T, k types.NamespacedName, backends string) {
	t.Helper()
	for end := time.Now().Add(700 * time.Millisecond); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		vips := e.vips(t, k)
		if got := slices.Sorted(maps.Values(vips)); len(got) != 1 || got[0] != backends {
			t.Fatalf("Service %s has %v, want one address that goes to %q all along", k, vips, backends)
		}
	}
}
