package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// creators is how many of the bench's own requests to the API server are under way at once.
const creators = 32

// cluster is an API server with Godwit's manifests, and an OVN central, with nothing running on them.
type cluster struct {
	programs programs
	dir      string
	rest     *rest.Config // an administrator
	api      client.Client
	northd   *process
	nb, sb   string // endpoints

	stops []func()
}

// startCluster starts the programs. The cluster must be stopped, also when this fails.
func startCluster(ctx context.Context, p programs) (*cluster, error) {
	c := &cluster{programs: p}
	dir, err := os.MkdirTemp("", "gwb") // short: a unix socket's path has at most 107 bytes
	if err != nil {
		return c, err
	}
	c.dir = dir
	c.stops = append(c.stops, func() { _ = os.RemoveAll(dir) })
	server := &envtest.Environment{BinaryAssetsDirectory: p.kubernetes, CRDDirectoryPaths: []string{filepath.Join(p.source, "yamls", "crds")}, ErrorIfCRDPathMissing: true}
	c.stops = append(c.stops, func() { _ = server.Stop() })
	if c.rest, err = server.Start(); err != nil {
		return c, fmt.Errorf("start an API server: %w", err)
	}
	c.rest.QPS, c.rest.Burst = -1, 0
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return c, err
	}
	if c.api, err = client.New(c.rest, client.Options{Scheme: scheme}); err != nil {
		return c, err
	}
	if err := errors.Join(c.apply(ctx, "install.yaml", "Namespace", "ServiceAccount"), c.apply(ctx, "rbac.yaml")); err != nil {
		return c, err
	}
	return c, c.startOVN(ctx)
}

func (c *cluster) startOVN(ctx context.Context) error {
	for name, schema := range map[string]string{"nb": "usr/share/ovn/ovn-nb.ovsschema", "sb": "usr/share/ovn/ovn-sb.ovsschema"} {
		file := func(ext string) string { return filepath.Join(c.dir, name+ext) }
		path, err := c.programs.ovn.Path(schema)
		if err != nil {
			return err
		}
		if out, err := c.programs.ovn.Command(ctx, "ovsdb-tool", "create", file(".db"), path).CombinedOutput(); err != nil {
			return fmt.Errorf("create the database %s: %w: %s", name, err, out)
		}
		if _, err := c.run(ctx, name, "ovsdb-server", "--remote=punix:"+file(".sock"), "--unixctl="+file(".ctl"), "-vconsole:warn", file(".db")); err != nil {
			return err
		}
		if err := awaitSocket(ctx, file(".sock")); err != nil {
			return err
		}
	}
	c.nb, c.sb = "unix:"+filepath.Join(c.dir, "nb.sock"), "unix:"+filepath.Join(c.dir, "sb.sock")
	var err error
	c.northd, err = c.run(ctx, "northd", "ovn-northd", "--ovnnb-db="+c.nb, "--ovnsb-db="+c.sb, "--unixctl="+filepath.Join(c.dir, "northd.ctl"), "-vconsole:warn")
	return err
}

func (c *cluster) run(ctx context.Context, log, name string, args ...string) (*process, error) {
	p, err := c.programs.spawn.start(c.programs.ovn.Command(ctx, name, args...), filepath.Join(c.programs.logs, log+".log"))
	if err == nil {
		c.stops = append(c.stops, p.stop)
	}
	return p, err
}

// stop ends everything, last started first.
func (c *cluster) stop() {
	for _, s := range slices.Backward(c.stops) {
		s()
	}
	c.stops = nil
}

// apply creates the objects of a manifest in yamls/, of the given kinds if any are given.
func (c *cluster) apply(ctx context.Context, file string, kinds ...string) error {
	text, err := os.ReadFile(filepath.Join(c.programs.source, "yamls", file))
	if err != nil {
		return err
	}
	dec := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		var u unstructured.Unstructured
		if err := dec.Decode(&u); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("yamls/%s: %w", file, err)
		}
		if len(kinds) > 0 && !slices.Contains(kinds, u.GetKind()) {
			continue
		}
		if err := c.api.Create(ctx, &u); err != nil {
			return fmt.Errorf("yamls/%s: %s %s: %w", file, u.GetKind(), u.GetName(), err)
		}
	}
}

func nodeName(i int) string { return fmt.Sprintf("node-%03d", i) }

// addNodes registers n nodes whose agents have published an MTU, and the namespaces that are named.
func (c *cluster) addNodes(ctx context.Context, n int, namespaces ...string) error {
	for _, ns := range namespaces {
		if err := c.api.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}); err != nil {
			return err
		}
	}
	return each(ctx, n, creators, func(ctx context.Context, i int) error {
		return c.api.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName(i), Annotations: map[string]string{v1alpha1.MTUAnnotation: "1442"}}})
	})
}

// newPod is a pod as the scheduler leaves it, on one of n nodes.
func newPod(namespace, name, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": namespace}},
		Spec: corev1.PodSpec{
			NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "none"}}, AutomountServiceAccountToken: new(bool),
		},
	}
}

func podName(i int) string { return fmt.Sprintf("p%05d", i) }

// addPods creates pods 0 to n-1 of a namespace.
func (c *cluster) addPods(ctx context.Context, namespace string, n, nodes int) error {
	return each(ctx, n, creators, func(ctx context.Context, i int) error {
		return c.api.Create(ctx, newPod(namespace, podName(i), nodeName(i%nodes)))
	})
}

// each calls do for 0 to n-1, several at once.
func each(ctx context.Context, n, atOnce int, do func(context.Context, int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for i := range n {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error { return do(ctx, i) })
	}
	return g.Wait()
}

// clientFor is a client of paths that are no resources.
func clientFor(cfg *rest.Config) (rest.Interface, error) {
	d, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return nil, err
	}
	return d.RESTClient(), nil
}
