package kubectl

import (
	"bytes"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// Of a VM's Ports those count that its interfaces have, and the pod network's before another: whatever the Ports are called.
func TestPortsOfAVM(t *testing.T) {
	condition := func(status metav1.ConditionStatus, reason string) []metav1.Condition {
		return []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: status, Reason: reason}}
	}
	began := time.Date(2026, 11, 22, 4, 0, 0, 0, time.UTC)
	port := func(name, network, ip string, made time.Time) *v1alpha1.Port {
		p := vmPort(name, network, "node1")
		p.CreationTimestamp = metav1.NewTime(made)
		p.Status.Phase, p.Status.IPs, p.Status.MAC, p.Status.Conditions = v1alpha1.PortAttached, []string{ip}, "0a:67:0a:f4:00:09", condition(metav1.ConditionTrue, "Ready")
		return p
	}
	moved := port("a-moved", "default", "10.244.0.8", began)
	moved.Status.Node, moved.Status.Phase, moved.Status.Conditions = "", v1alpha1.PortReserved, condition(metav1.ConditionFalse, v1alpha1.ReasonTargetTaken)
	vmi := ready().vmi
	agent := agentPod("node1")
	agent.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	c := clusterOf(t, nil, vmi, agent, node("node1"), moved, port("aaa-storage", "storage", "10.9.0.5", began), port("web1", "default", "10.244.0.9", began.Add(time.Hour)))

	if v, err := c.viewOf(t.Context(), "web1", ""); err != nil || v.key.Name != "web1" {
		t.Errorf("tcpdump looks at Port %s: %v", v.key.Name, err)
	}
	for text, want := range map[string]string{
		"web1": "VM shop/web1 vm/shop/web1/default 10.244.0.9/32", "10.9.0.5": "VM shop/web1, network storage vm/shop/web1/storage 10.9.0.5/32", "10.244.0.8": "10.244.0.8  10.244.0.8/32",
	} {
		e, err := c.find(t.Context(), text)
		if err != nil || len(e.addresses) != 1 || e.name+" "+e.port+" "+e.addresses[0].String() != want {
			t.Errorf("%s is %s %s %v (%v), want %s", text, e.name, e.port, e.addresses, err, want)
		}
	}
	p, err := c.preflight(t.Context(), "web1")
	if err != nil {
		t.Fatal(err)
	}
	if found := p.attached(); len(found) != 2 || found[0].finding != "Port web1 is attached, with 10.244.0.9" || found[1].finding != "Port aaa-storage is attached, with 10.9.0.5" {
		t.Errorf("the pre-flight says %+v", found)
	}
	var out bytes.Buffer
	if err := c.port(t.Context(), &out, "web1", asTable); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	if a, b, z := strings.Index(text, "Port web1"), strings.Index(text, "Port aaa-storage"), strings.Index(text, "Port a-moved"); a < 0 || b < a || z < b || !strings.Contains(text, v1alpha1.ReasonTargetTaken) {
		t.Errorf("port tells of them in another order:\n%s", text)
	}
}

// A pod's interfaces on second networks are told too, and found by their addresses.
func TestPortOfAPodWithNICs(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db", UID: "00000000-0000-4000-8000-000000000001"}, Spec: corev1.PodSpec{NodeName: "node1"}}
	pod.Annotations = map[string]string{v1alpha1.IdentityAnnotation: podIdentity(t, string(pod.UID))}
	c := clusterOf(t, nil, pod)
	var out bytes.Buffer
	if err := c.port(t.Context(), &out, "db", asTable); err != nil {
		t.Fatal(err)
	}
	golden(t, "port-nics.txt", out.String())
	if e, err := c.find(t.Context(), "10.9.0.5"); err != nil || e.name != "pod shop/db, network shop/storage" || e.port != "pod/shop/db/net1" {
		t.Errorf("10.9.0.5 is %s, %s (%v)", e.name, e.port, err)
	}
}

// With -o wide OVN is asked for each of them.
func TestPortOfAPodWithNICsInside(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db", UID: "00000000-0000-4000-8000-000000000001"}}
	pod.Annotations = map[string]string{v1alpha1.IdentityAnnotation: podIdentity(t, string(pod.UID))}
	const none = `{"data":[],"headings":["name"]}`
	said := answers{"ovn-central-0" + askNB: status("leader")}
	ask := func(program, columns, rest string) {
		container := map[string]string{"ovn-nbctl": "nb", "ovn-sbctl": "sb"}[program]
		said["ovn-central-0/"+container+": "+program+" --no-leader-only --format=json --columns="+columns+" "+rest] = answer{stdout: none}
	}
	for _, port := range []string{"pod/shop/db/default", "pod/shop/db/net1"} {
		ask("ovn-nbctl", "_uuid,up,options,external_ids", `find Logical_Switch_Port name="`+port+`"`)
		ask("ovn-sbctl", "chassis,additional_chassis,up,options", `find Port_Binding logical_port="`+port+`"`)
	}
	ask("ovn-sbctl", "_uuid,name", "list Chassis")
	ask("ovn-nbctl", "name,vips", "list Load_Balancer")
	var out bytes.Buffer
	if err := clusterOf(t, said, pod, ovnPod("ovn-central-0", centralComponent, "node1")).port(t.Context(), &out, "db", wide); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"no port pod/shop/db/default:", "no port pod/shop/db/net1:"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}
