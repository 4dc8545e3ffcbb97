package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/godwit-cni/godwit/test/lab/boot"
	"github.com/godwit-cni/godwit/test/lab/source"
	"github.com/godwit-cni/godwit/test/lab/supervise"
)

const (
	// Namespace is where Godwit runs.
	Namespace = "godwit-system"
	// settings is the ConfigMap through which Godwit's manifests are adapted to a cluster.
	settings     = "godwit-config"
	fieldManager = "godwit-lab"
	applyTimeout = 2 * time.Minute
	// ovnManifest is of OVN as pods; centralSet is its StatefulSet of the databases, which runs on nodes with centralLabel.
	ovnManifest  = "ovn.yaml"
	centralSet   = "ovn-central"
	centralLabel = "godwit.dev/ovn-central"
	// sbGatePort is administrators' on the nodes with the databases, as in yamls/install.yaml.
	sbGatePort = 6645
	// nodeTLSDir is where nodes keep their certificates.
	nodeTLSDir = "/etc/godwit/tls"
)

// deploy brings the lab's images to all nodes and, if Godwit is the lab's CNI, applies its manifests and restarts its pods when their image is another
// than before.
func (l *Lab) deploy(ctx context.Context, c Config, digest string) error {
	if err := l.updateImages(ctx); err != nil {
		return err
	}
	if c.CNI != CNIGodwit || c.Empty {
		return nil
	}
	if err := l.applyManifests(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	old := l.state.Image
	l.mu.Unlock()
	if old != "" && (old != digest || c.Reload) {
		if err := l.restartGodwit(ctx); err != nil {
			return err
		}
	}
	if err := l.update(func(s *state) { s.Image = digest }); err != nil {
		return err
	}
	return l.awaitGodwit(ctx)
}

// awaitGodwit returns when Godwit's pods have replaced those of before and are ready, on every node that runs.
func (l *Lab) awaitGodwit(ctx context.Context) error {
	client, err := l.Client()
	if err != nil {
		return err
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, nodesTimeout)
	defer cancel()
	for {
		missing, err := l.missingGodwit(ctx, client)
		if err == nil && missing == "" {
			return nil
		}
		if pauseErr := pause(ctx, poll); pauseErr != nil {
			return errors.Join(fmt.Errorf("Godwit is not ready after %s: %s: see godwit-lab kubectl -n %s describe pods", time.Since(start).Round(time.Second),
				missing, Namespace), err, pauseErr)
		}
	}
}

// missingGodwit says which of Godwit's pods is not ready, or nothing.
func (l *Lab) missingGodwit(ctx context.Context, client kubernetes.Interface) (string, error) {
	list, err := client.CoreV1().Pods(Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", fmt.Errorf("list Godwit's pods: %w", err)
	}
	ready := map[string]bool{}
	for i := range list.Items {
		p := &list.Items[i]
		if p.DeletionTimestamp != nil && l.running(p.Spec.NodeName) {
			return "pod " + p.Name + " has not ended", nil
		}
		component := p.Labels["app.kubernetes.io/component"]
		if podReady(p) {
			ready[component+" on "+p.Spec.NodeName], ready[component] = true, true
		}
	}
	for _, name := range l.NodeNames() {
		if l.running(name) && !ready["agent on "+name] {
			return "no agent is ready on " + name, nil
		}
	}
	if l.ovn() == OVNPods {
		for _, name := range l.central() {
			if l.running(name) && !ready["ovn-central on "+name] {
				return "no member of OVN's databases is ready on " + name, nil
			}
		}
	}
	if !ready["controller"] {
		return "no controller is ready", nil
	}
	return "", nil
}

func podReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue && p.DeletionTimestamp == nil
		}
	}
	return false
}

func (l *Lab) running(name string) bool { return l.machine(name).Process.alive() }

// updateImages imports images that have changed since the nodes booted.
func (l *Lab) updateImages(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, name := range l.NodeNames() {
		if l.machine(name).Stopped {
			continue
		}
		g.Go(func() error { return l.updateNodeImages(ctx, name) })
	}
	return g.Wait()
}

func (l *Lab) updateNodeImages(ctx context.Context, name string) error {
	// A node imports by itself when it boots, before its kubelet starts; doing it beside that would only take longer.
	if err := l.awaitService(ctx, name, "kubelet"); err != nil {
		return err
	}
	archives, err := boot.Unimported(l.path(imagesDir), l.machineDir(name))
	if err != nil {
		return err
	}
	for _, a := range archives {
		l.log.Info("importing image", "node", name, "archive", a)
		if _, err := l.Exec(ctx, name, boot.ImportArgv(a)...); err != nil {
			return err
		}
		if err := boot.MarkImported(l.path(imagesDir), l.machineDir(name), a); err != nil {
			return err
		}
	}
	return nil
}

// awaitService returns when a service of a machine is ready.
func (l *Lab) awaitService(ctx context.Context, name, service string) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	for {
		st, err := supervise.ReadStatus(filepath.Join(l.machineDir(name), "status.json"))
		if err == nil && st[service].Ready {
			return nil
		}
		if !l.machine(name).Process.alive() {
			return fmt.Errorf("%s ended while it was waited for: see %s", name, l.path(logsDir, name, initLog))
		}
		if pauseErr := pause(ctx, poll); pauseErr != nil {
			return fmt.Errorf("%s on %s is not ready: %w: %s: see %s", service, name, errors.Join(err, pauseErr), st[service].LastError,
				l.path(logsDir, name, service+".log"))
		}
	}
}

// applyManifests applies what a user of Godwit applies, with the settings of this cluster.
func (l *Lab) applyManifests(ctx context.Context) error {
	top, err := source.Dir()
	if err != nil {
		return err
	}
	definitions, others, err := l.Manifests(ctx, Release{Source: top, Image: GodwitImage})
	if err != nil {
		return err
	}
	return l.Apply(ctx, append(definitions, others...)...)
}

func readManifest(file string) ([]*unstructured.Unstructured, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read Godwit's manifests: %w", err)
	}
	defer func() { _ = f.Close() }()
	objects, err := ReadObjects(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return objects, nil
}

// overrideSettings adapts the ConfigMap of settings.
func (l *Lab) overrideSettings(objects []*unstructured.Unstructured) error {
	for _, o := range objects {
		if o.GetKind() != "ConfigMap" || o.GetNamespace() != Namespace || o.GetName() != settings {
			continue
		}
		data, _, err := unstructured.NestedStringMap(o.Object, "data")
		if err != nil {
			return fmt.Errorf("read ConfigMap %s/%s: %w", Namespace, settings, err)
		}
		if data == nil {
			data = map[string]string{}
		}
		maps.Copy(data, l.Settings())
		return unstructured.SetNestedStringMap(o.Object, data, "data")
	}
	return fmt.Errorf("Godwit's manifests have no ConfigMap %s/%s: the lab sets the addresses of the API server and of OVN in it", Namespace, settings)
}

// Settings are this cluster's, for the ConfigMap godwit-config. Godwit cannot use the Service of the API server: Services work once it does.
func (l *Lab) Settings() map[string]string {
	family := l.IPFamily()
	hub := hostAddresses(family, mgmtNet, hubHost)[0].Addr()
	host := hub.String()
	if hub.Is6() {
		host = "[" + host + "]"
	}
	set := map[string]string{
		"KUBERNETES_SERVICE_HOST": hub.String(), "KUBERNETES_SERVICE_PORT": fmt.Sprint(boot.APIPort),
		"GODWIT_NB_REMOTE": fmt.Sprintf("tcp:%s:%d", host, boot.NBPort), "GODWIT_SB_REMOTE": fmt.Sprintf("tcp:%s:%d", host, boot.SBPort),
		"GODWIT_UNDERLAY":      families(family, tunNet)[0].String(),
		"GODWIT_DEFAULT_CIDRS": join(families(family, podNet)), "GODWIT_JOIN_CIDRS": join(families(family, joinNet)),
	}
	tls := l.tls()
	if l.ovn() == OVNPods {
		protocol := "tcp:"
		if tls {
			protocol = "ssl:"
		}
		remotes := func(port uint16) string {
			var all []string
			for _, name := range l.central() {
				all = append(all, protocol+netip.AddrPortFrom(l.NodeIPs(name)[0], port).String())
			}
			return strings.Join(all, ",")
		}
		set["GODWIT_NB_REMOTE"], set["GODWIT_SB_REMOTE"], set["GODWIT_SB_GATE"] = remotes(boot.NBPort), remotes(boot.SBPort), remotes(sbGatePort)
	}
	if !tls {
		// Certificates are for agents among themselves alone, as docs/migration.md has it.
		set["GODWIT_SB_GATE"], set["GODWIT_OVN_TLS_DIR"], set["GODWIT_NODE_TLS_DIR"] = "", "", nodeTLSDir
	}
	return set
}

// adaptCentral lets as many nodes hold the databases as there can be, and makes as many members, before anything waits for them.
func (l *Lab) adaptCentral(ctx context.Context, objects []*unstructured.Unstructured) error {
	if l.ovn() != OVNPods {
		return nil
	}
	for _, o := range objects {
		if o.GetKind() != "StatefulSet" || o.GetName() != centralSet {
			continue
		}
		if err := unstructured.SetNestedField(o.Object, int64(len(l.central())), "spec", "replicas"); err != nil {
			return fmt.Errorf("set the replicas of %s: %w", centralSet, err)
		}
		if err := l.optionalSecrets(o); err != nil {
			return err
		}
	}
	client, err := l.Client()
	if err != nil {
		return err
	}
	if err := l.awaitNodes(ctx, nodesReported); err != nil { // their Nodes are made by their kubelets
		return err
	}
	for _, name := range l.central() {
		patch := []byte(`{"metadata":{"labels":{"` + centralLabel + `":""}}}`)
		if _, err := client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager}); err != nil {
			return fmt.Errorf("label node %s: %w", name, err)
		}
	}
	return nil
}

// optionalSecrets lets the databases' certificates be missing without TLS.
func (l *Lab) optionalSecrets(set *unstructured.Unstructured) error {
	path := []string{"spec", "template", "spec", "volumes"}
	volumes, _, err := unstructured.NestedSlice(set.Object, path...)
	if err != nil {
		return fmt.Errorf("read the volumes of %s: %w", centralSet, err)
	}
	for _, v := range volumes {
		if m, ok := v.(map[string]any); ok && m["secret"] != nil {
			if err := unstructured.SetNestedField(m, !l.tls(), "secret", "optional"); err != nil {
				return fmt.Errorf("set a volume of %s: %w", centralSet, err)
			}
		}
	}
	return unstructured.SetNestedSlice(set.Object, volumes, path...)
}

// restartGodwit deletes Godwit's pods; their controllers make them anew, with the image that the nodes have now.
func (l *Lab) restartGodwit(ctx context.Context) error {
	client, err := l.Client()
	if err != nil {
		return err
	}
	l.log.Info("restarting Godwit's pods: their image has changed")
	now := int64(1)
	err = client.CoreV1().Pods(Namespace).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("restart Godwit's pods: %w", err)
	}
	return nil
}
