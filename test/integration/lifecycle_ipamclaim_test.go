package integration

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/nad"
)

// installIPAMClaims makes the definition of IPAMClaims, with what is read of them.
func (e *env) installIPAMClaims(t *testing.T) {
	t.Helper()
	text := func(kind string) apiextensionsv1.JSONSchemaProps { return apiextensionsv1.JSONSchemaProps{Type: kind} }
	texts := apiextensionsv1.JSONSchemaProps{Type: "array", Items: &apiextensionsv1.JSONSchemaPropsOrArray{Schema: &apiextensionsv1.JSONSchemaProps{Type: "string"}}}
	object := func(p map[string]apiextensionsv1.JSONSchemaProps) apiextensionsv1.JSONSchemaProps {
		return apiextensionsv1.JSONSchemaProps{Type: "object", Properties: p}
	}
	schema := object(map[string]apiextensionsv1.JSONSchemaProps{
		"spec":   object(map[string]apiextensionsv1.JSONSchemaProps{"network": text("string"), "interface": text("string")}),
		"status": object(map[string]apiextensionsv1.JSONSchemaProps{"ips": texts, "ownerPod": object(map[string]apiextensionsv1.JSONSchemaProps{"name": text("string")})}),
	})
	crd := &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "ipamclaims.k8s.cni.cncf.io"},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: "k8s.cni.cncf.io", Scope: apiextensionsv1.NamespaceScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "ipamclaims", Singular: "ipamclaim", Kind: "IPAMClaim", ListKind: "IPAMClaimList"},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{
				Name: "v1alpha1", Served: true, Storage: true, Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &schema},
				Subresources: &apiextensionsv1.CustomResourceSubresources{Status: &apiextensionsv1.CustomResourceSubresourceStatus{}},
			}},
		},
	}
	if _, err := envtest.InstallCRDs(e.rest, envtest.CRDInstallOptions{CRDs: []*apiextensionsv1.CustomResourceDefinition{crd}, MaxTime: patience}); err != nil {
		t.Fatal(err)
	}
}

func ipamClaim(name string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "k8s.cni.cncf.io/v1alpha1", "kind": "IPAMClaim", "metadata": map[string]any{"namespace": "shop", "name": name},
		"spec": map[string]any{"network": "blue", "interface": "net1"},
	}}
}

// claimHas waits until an IPAMClaim says the addresses of a NIC.
func (e *env) claimHas(t *testing.T, name string, nic v1alpha1.NIC) {
	t.Helper()
	var want []string
	for _, ip := range nic.IPs {
		want = append(want, ip.String())
	}
	eventually(t, func() error {
		c := ipamClaim(name)
		if err := e.api.Get(t.Context(), client.ObjectKeyFromObject(c), c); err != nil {
			return err
		}
		if got, _, err := unstructured.NestedStringSlice(c.Object, "status", "ips"); err != nil || !slices.Equal(got, want) {
			return fmt.Errorf("status.ips of IPAMClaim %s is %v (%w), want %v", name, got, err, want)
		}
		return nil
	})
}

// The addresses of a pod's interface that refers to an IPAMClaim are the claim's: the next pod has them, whoever asked for them in between, and a controller that started again knows of it.
// They are free when the claim is gone, and no pod has them any more.
func TestLifecycleIPAMClaim(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.installNADs(t)
	e.start(t)
	e.node(t, "n1")
	e.central.Chassis(t, "n1")
	e.defaultSubnet(t)
	e.namespace(t, "shop", map[string]string{"subnet": "shop"})
	e.create(t, subnet("blue", v1alpha1.SubnetSpec{CIDRs: []string{"10.77.0.0/24", "fd00:77::/64"}, NamespaceSelector: selectsAny("shop"), SecondNetworksOnly: true}))
	e.nad(t, key("shop", "blue"), onSubnet("blue"))
	pod := func(name, networks string) *corev1.Pod {
		p := newPod(key("shop", name), "n1")
		p.Annotations = map[string]string{nad.Annotation: networks}
		e.create(t, p)
		return p
	}
	const byClaim = `[{"name":"blue","ipam-claim-reference":"db"}]`
	first := pod("first", byClaim)
	e.told(t, first, "IPAMClaimMissing") // there is not even a definition
	e.ports(t, first, "default")
	e.installIPAMClaims(t)
	e.create(t, ipamClaim("db"))
	has, _ := e.second(t, first, "net1")
	e.claimHas(t, "db", has)

	second := pod("second", byClaim) // while the first has them
	e.told(t, second, "AddressTaken")
	e.deletePod(t, client.ObjectKeyFromObject(first))
	if got, _ := e.second(t, second, "net1"); !slices.Equal(got.IPs, has.IPs) || got.MAC.String() != has.MAC.String() {
		t.Errorf("the next pod has %+v, want what the claim has: %+v", got, has)
	}
	e.deletePod(t, client.ObjectKeyFromObject(second))
	e.ports(t, second)
	asks := fmt.Sprintf(`[{"name":"blue","ips":[%q]}]`, has.IPs[0].Addr())
	thief := pod("thief", asks)
	e.told(t, thief, "AddressTaken")

	e.stop()
	if err := e.api.Delete(t.Context(), thief, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	e.start(t)
	again := pod("again", asks)
	e.told(t, again, "AddressTaken")
	third := pod("third", byClaim)
	if got, _ := e.second(t, third, "net1"); !slices.Equal(got.IPs, has.IPs) {
		t.Errorf("after the controller started again the claim's pod has %+v, want %+v", got, has)
	}

	if err := e.api.Delete(t.Context(), ipamClaim("db")); err != nil {
		t.Fatal(err)
	}
	if got, _ := e.second(t, third, "net1"); !slices.Equal(got.IPs, has.IPs) {
		t.Errorf("the claim is gone, and its pod has %+v, want what it had: %+v", got, has)
	}
	e.ports(t, again, "default")
	e.deletePod(t, client.ObjectKeyFromObject(third))
	if got, _ := e.second(t, again, "net1"); !slices.ContainsFunc(got.IPs, func(p netip.Prefix) bool { return p == has.IPs[0] }) {
		t.Errorf("claim and pod are gone: the pod that waited has %+v, want %s", got, has.IPs[0])
	}
}
