package integration

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/controller"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nad"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/test/lab/multus"
)

// installNADs makes the definition of NetworkAttachmentDefinitions.
func (e *env) installNADs(t *testing.T) {
	t.Helper()
	crd := &apiextensionsv1.CustomResourceDefinition{}
	text, _, _ := strings.Cut(multus.Manifest(), "\n---\n")
	if err := yaml.Unmarshal([]byte(text), crd); err != nil {
		t.Fatal(err)
	}
	if _, err := envtest.InstallCRDs(e.rest, envtest.CRDInstallOptions{CRDs: []*apiextensionsv1.CustomResourceDefinition{crd}, MaxTime: patience}); err != nil {
		t.Fatal(err)
	}
}

// nad creates a NetworkAttachmentDefinition.
func (e *env) nad(t *testing.T, name types.NamespacedName, config string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
		"metadata": map[string]any{"namespace": name.Namespace, "name": name.Name}, "spec": map[string]any{"config": config},
	}}
	e.create(t, u)
	return u
}

func onSubnet(name string) string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"type":"godwit","subnet":%q}`, name, name)
}

// second is what a pod has on a second network, and its row, once both say the same.
func (e *env) second(t *testing.T, pod *corev1.Pod, link string) (nic v1alpha1.NIC, row *nbdb.LogicalSwitchPort) {
	t.Helper()
	eventually(t, func() error {
		id, err := e.identity(t.Context(), client.ObjectKeyFromObject(pod))
		if err != nil {
			return err
		}
		var ok bool
		if nic, ok = id.NIC(link); !ok {
			return fmt.Errorf("the identity of pod %s has no interface %s: %+v", pod.Name, link, id)
		}
		row, err = e.nb.Port(t.Context(), ident.PodPort(pod.Namespace, pod.Name, link))
		if err == nil && (row == nil || row.ExternalIDs[ident.KeyUID] != string(pod.UID) || !strings.HasPrefix(row.Addresses[0], nic.MAC.String()+" "+nic.IPs[0].Addr().String())) {
			err = fmt.Errorf("the row of %s of pod %s is %+v, want that of %+v", link, pod.Name, row, nic)
		}
		return err
	})
	return nic, row
}

// ports waits until there are as many rows of a pod.
func (e *env) ports(t *testing.T, pod *corev1.Pod, want ...string) {
	t.Helper()
	eventually(t, func() error {
		rows, err := e.nb.PodPorts(t.Context(), pod.Namespace, pod.Name)
		var got []string
		for _, row := range rows {
			_, _, network, _ := ident.ParsePodPort(ident.PortName(row.Name))
			got = append(got, network)
		}
		if slices.Sort(got); err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("pod %s has rows %v, want %v", pod.Name, got, want)
		}
		return err
	})
}

// A pod has a port of its own on each network of a NetworkAttachmentDefinition of Godwit's that its namespace may be on, whenever the definition comes.
func TestLifecycleSecondNetworks(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.start(t)
	e.node(t, "n1")
	e.central.Chassis(t, "n1")
	e.defaultSubnet(t)
	e.namespace(t, "shop", map[string]string{"subnet": "shop"})
	e.create(t, subnet("blue", v1alpha1.SubnetSpec{CIDRs: []string{"10.77.0.0/24", "fd00:77::/64"}, NamespaceSelector: selectsAny("shop"), SecondNetworksOnly: true}),
		subnet("green", v1alpha1.SubnetSpec{CIDRs: []string{"10.78.0.0/24"}, NamespaceSelector: selectsAny("shop"), SecondNetworksOnly: true}),
		subnet("red", v1alpha1.SubnetSpec{CIDRs: []string{"10.79.0.0/24"}, NamespaceSelector: selectsAny("others")}))
	pod := func(name, networks string) *corev1.Pod {
		p := newPod(key("shop", name), "n1")
		p.Annotations = map[string]string{nad.Annotation: networks}
		e.create(t, p)
		return p
	}

	early := pod("early", "blue")
	if id, _ := e.served(t, client.ObjectKeyFromObject(early)); id.Subnet != controller.DefaultSubnet { // without the definition the annotation is somebody else's business
		t.Errorf("the pod's first interface is in Subnet %s, want the default one: the others are for second networks alone", id.Subnet)
	}
	e.ports(t, early, "default")
	e.installNADs(t)
	blue := e.nad(t, key("shop", "blue"), onSubnet("blue"))
	e.nad(t, key("shop", "green"), `{"name":"g","plugins":[{"type":"godwit","subnet":"green"},{"type":"tuning"}]}`)
	e.nad(t, key("shop", "other"), `{"type":"bridge"}`)
	e.nad(t, key("default", "red"), onSubnet("red"))
	nic, row := e.second(t, early, "net1")
	if nic.Network != "shop/blue" || nic.Subnet != "blue" || len(nic.IPs) != 2 || row.Options[ident.OptionRequestedChassis] != "n1" || row.Options[ident.OptionIfaceIDVer] != string(early.UID) {
		t.Errorf("the pod has %+v and the row %+v", nic, row)
	}

	many := pod("many", `[{"name":"blue","interface":"b0","ips":["10.77.0.99/24"],"mac":"02:00:00:00:77:63"},{"name":"other"},{"name":"green"},{"name":"blue"}]`)
	if nic, row := e.second(t, many, "b0"); nic.MAC.String() != "02:00:00:00:77:63" || nic.IPs[0].String() != "10.77.0.99/24" || !strings.HasPrefix(row.Addresses[0], "02:00:00:00:77:63 10.77.0.99 fd00:77::") {
		t.Errorf("what was asked for is %+v, with row %v", nic, row.Addresses)
	}
	if nic, _ := e.second(t, many, "net3"); nic.Subnet != "green" {
		t.Errorf("net3 is %+v, want Subnet green", nic)
	}
	e.second(t, many, "net4")
	e.ports(t, many, "b0", "default", "net3", "net4")

	for name, c := range map[string]struct{ networks, reason string }{
		"closed":    {"default/red", "SubnetNotAllowed"},
		"taken":     {`[{"name":"blue","ips":["10.77.0.99"]}]`, "AddressTaken"},
		"elsewhere": {`[{"name":"blue","ips":["10.99.0.99"]}]`, "AddressOutOfRange"},
		"mac":       {`[{"name":"blue","mac":"02:00:00:00:77:63"}]`, "MACTaken"},
		"multicast": {`[{"name":"blue","mac":"01:00:5e:00:00:01"}]`, v1alpha1.ReasonInvalid},
		"eth0":      {"blue@eth0", v1alpha1.ReasonInvalid},
		"nonsense":  {`[{"name":`, v1alpha1.ReasonInvalid},
	} {
		p := pod(name, c.networks)
		e.told(t, p, c.reason)
		if id, _ := e.served(t, client.ObjectKeyFromObject(p)); len(id.NICs) != 0 {
			t.Errorf("%s: the pod has %+v, want its first interface alone", name, id.NICs)
		}
		e.ports(t, p, "default")
	}

	t.Run("what waits", func(t *testing.T) { e.secondWaits(t, pod, many) })
	t.Run("restart", func(t *testing.T) { e.secondStays(t, early, blue) })
}

// secondWaits: an interface that cannot be had comes when it can, and goes when it is asked for no more.
func (e *env) secondWaits(t *testing.T, pod func(name, networks string) *corev1.Pod, many *corev1.Pod) {
	later, taken := pod("later", "late@l0,blue"), &corev1.Pod{}
	e.second(t, later, "net2")
	e.ports(t, later, "default", "net2")
	late := e.nad(t, key("shop", "late"), onSubnet("red"))
	e.told(t, later, "SubnetNotAllowed")
	before := late.DeepCopy()
	if err := unstructured.SetNestedField(late.Object, onSubnet("green"), "spec", "config"); err != nil {
		t.Fatal(err)
	}
	if err := e.api.Patch(t.Context(), late, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	e.second(t, later, "l0")

	if err := e.api.Get(t.Context(), key("shop", "taken"), taken); err != nil {
		t.Fatal(err)
	}
	change := many.DeepCopy()
	many.Annotations[nad.Annotation] = "green@net3"
	if err := e.api.Patch(t.Context(), many, client.MergeFrom(change)); err != nil {
		t.Fatal(err)
	}
	e.ports(t, many, "default", "net3")
	if nic, _ := e.second(t, taken, "net1"); nic.IPs[0].Addr() != netip.MustParseAddr("10.77.0.99") {
		t.Errorf("the pod that waited has %+v, want the address that was given back", nic)
	}
	e.deletePod(t, client.ObjectKeyFromObject(taken))
	e.ports(t, taken)
}

// secondStays: what a pod has it keeps, whatever becomes of the NetworkAttachmentDefinition, of the controller, and of the row.
func (e *env) secondStays(t *testing.T, pod *corev1.Pod, definition *unstructured.Unstructured) {
	before, row := e.second(t, pod, "net1")
	if err := e.api.Delete(t.Context(), definition); err != nil {
		t.Fatal(err)
	}
	e.stop()
	if err := e.nb.Apply(t.Context(), ovn.DeletePort(ident.PortName(row.Name))); err != nil {
		t.Fatal(err)
	}
	e.start(t)
	after, _ := e.second(t, pod, "net1")
	if after.IPs[0] != before.IPs[0] || after.MAC.String() != before.MAC.String() {
		t.Errorf("after a restart the pod has %+v, want %+v", after, before)
	}
	e.deletePod(t, client.ObjectKeyFromObject(pod))
	e.ports(t, pod)
}
