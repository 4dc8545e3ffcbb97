package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	coordinationv1ac "k8s.io/client-go/applyconfigurations/coordination/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/service"
)

// NodeAnnotator writes one annotation of the agent's own Node.
type NodeAnnotator func(ctx context.Context, key, value string) error

// Writers are what the agent writes to the API.
type Writers struct {
	Annotate NodeAnnotator
	Report   Reporter
	Renew    Renewer
	// Certificates is used where the southbound database asks for one.
	Certificates Certificates
}

// API makes the sources and the writers of one node from the API server. It makes no request itself.
func API(cfg *rest.Config, nodeName string) (Sources, Writers, error) {
	clients, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return Sources{}, Writers{}, fmt.Errorf("make Kubernetes client: %w", err)
	}
	godwit, err := godwitClient(cfg)
	if err != nil {
		return Sources{}, Writers{}, err
	}
	migrations := func(field string) cache.ListerWatcher {
		return cache.NewListWatchFromClient(godwit, resourceMigrations, metav1.NamespaceAll, fields.OneTermEqualSelector(field, nodeName))
	}
	core := clients.CoreV1().RESTClient()
	src := Sources{
		Nodes:    cache.NewListWatchFromClient(core, "nodes", metav1.NamespaceNone, fields.OneTermEqualSelector(metav1.ObjectNameField, nodeName)),
		Pods:     cache.NewListWatchFromClient(core, "pods", metav1.NamespaceAll, fields.OneTermEqualSelector("spec.nodeName", nodeName)),
		Subnets:  cache.NewListWatchFromClient(godwit, "subnets", metav1.NamespaceNone, fields.Everything()),
		Services: cache.NewFilteredListWatchFromClient(core, "services", metav1.NamespaceAll, func(o *metav1.ListOptions) { o.LabelSelector = "!" + service.ProxyLabel }),
		EndpointSlices: cache.NewFilteredListWatchFromClient(clients.DiscoveryV1().RESTClient(), "endpointslices", metav1.NamespaceAll,
			func(o *metav1.ListOptions) { o.LabelSelector = "!" + corev1.IsHeadlessService }),
		Ports:          cache.NewListWatchFromClient(godwit, "ports", metav1.NamespaceAll, fields.Everything()),
		MigrationsFrom: migrations("spec.source.node"), MigrationsTo: migrations("spec.target.node"),
		Addresses: func(ctx context.Context, name string) ([]netip.Addr, error) {
			node, err := clients.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return nil, fmt.Errorf("read Node %s: %w", name, err)
			}
			return internalIPs(node), nil
		},
		Subnet: func(ctx context.Context, name string) (*v1alpha1.Subnet, error) {
			s := &v1alpha1.Subnet{}
			if err := godwit.Get().Resource("subnets").Name(name).Do(ctx).Into(s); err != nil {
				return nil, fmt.Errorf("read Subnet %s: %w", name, err)
			}
			return s, nil
		},
	}
	annotate := func(ctx context.Context, key, value string) error {
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{key: value}}})
		if err != nil {
			return fmt.Errorf("encode patch: %w", err)
		}
		if _, err := clients.CoreV1().Nodes().Patch(ctx, nodeName, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			return fmt.Errorf("set annotation %s of Node %s: %w", key, nodeName, err)
		}
		return nil
	}
	return src, Writers{Annotate: annotate, Report: reporter(godwit), Renew: renewer(clients, nodeName)}, nil
}

// renewer applies the Lease whole: a request a second, whether or not it exists.
func renewer(clients kubernetes.Interface, node string) Renewer {
	name := v1alpha1.EgressLease(node)
	return func(ctx context.Context, b Beat) error {
		addresses := make([]string, len(b.Addresses))
		for i, a := range b.Addresses {
			addresses[i] = a.String()
		}
		lease := coordinationv1ac.Lease(name, b.Namespace).
			WithAnnotations(map[string]string{v1alpha1.EgressAddressesAnnotation: strings.Join(addresses, ",")}).
			WithLabels(map[string]string{v1alpha1.EgressLeaseLabel: ""}).
			WithOwnerReferences(metav1ac.OwnerReference().WithAPIVersion("v1").WithKind("Node").WithName(node).WithUID(b.UID)).
			WithSpec(coordinationv1ac.LeaseSpec().WithHolderIdentity(node).WithRenewTime(metav1.NowMicro()).WithLeaseDurationSeconds(int32(b.Patience / time.Second)))
		_, err := clients.CoordinationV1().Leases(b.Namespace).Apply(ctx, lease, metav1.ApplyOptions{FieldManager: "godwit-agent", Force: true})
		if err != nil {
			return fmt.Errorf("renew Lease %s/%s: %w", b.Namespace, name, err)
		}
		return nil
	}
}

// resourceMigrations is the API's name for PortMigrations.
const resourceMigrations = "portmigrations"

func reporter(godwit rest.Interface) Reporter {
	return func(ctx context.Context, migration types.NamespacedName, part v1alpha1.PortMigrationStatus) error {
		patch, err := json.Marshal(map[string]any{"status": part})
		if err != nil {
			return fmt.Errorf("encode patch: %w", err)
		}
		return godwit.Patch(types.MergePatchType).Namespace(migration.Namespace).Resource(resourceMigrations).Name(migration.Name).SubResource("status").
			Body(patch).Do(ctx).Error()
	}
}

func godwitClient(cfg *rest.Config) (*rest.RESTClient, error) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register %s: %w", v1alpha1.GroupVersion, err)
	}
	cfg = rest.CopyConfig(cfg)
	cfg.GroupVersion, cfg.APIPath = &v1alpha1.GroupVersion, "/apis"
	cfg.ContentType = runtime.ContentTypeJSON // custom resources have no other
	cfg.AcceptContentTypes = runtime.ContentTypeJSON
	cfg.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("make client of %s: %w", v1alpha1.GroupVersion, err)
	}
	return client, nil
}
