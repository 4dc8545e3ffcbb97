package install

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/kubernetes"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/fixture"
	"github.com/godwit-cni/godwit/test/lab/source"
)

// chartValues are the chart's for what a lab's settings are.
var chartValues = map[string]string{
	"KUBERNETES_SERVICE_HOST": "apiServer.host", "KUBERNETES_SERVICE_PORT": "apiServer.port", "GODWIT_NB_REMOTE": "nbRemote", "GODWIT_SB_REMOTE": "sbRemote", "GODWIT_SB_GATE": "tls.sbGate",
	"GODWIT_UNDERLAY": "underlay", "GODWIT_DEFAULT_CIDRS": "defaultCIDRs", "GODWIT_JOIN_CIDRS": "joinCIDRs",
}

// release is Godwit as helm has installed it in a lab.
type release struct {
	top    string
	lab    *lab.Lab
	client kubernetes.Interface
}

// helmed installs the chart in a lab that has nothing of Godwit, with the databases on the first node, as docs/install.md says, and returns when all of it runs and the nodes are ready.
func helmed(t *testing.T, l *lab.Lab) release {
	t.Helper()
	top, err := source.Dir()
	if err != nil {
		t.Fatal(err)
	}
	client, err := l.Client()
	if err != nil {
		t.Fatal(err)
	}
	r := release{top, l, client}
	if _, err := fixture.Kubectl(t.Context(), l, "label", "node", "node1", centralLabel+"="); err != nil {
		t.Fatal(err)
	}
	set := []string{"--set=ovn.replicas=1"}
	for key, value := range l.Settings() {
		name, known := chartValues[key]
		if !known {
			t.Fatalf("the chart's value for the lab's setting %s is not known", key)
		}
		set = append(set, "--set-string="+name+"="+strings.ReplaceAll(value, ",", `\,`))
	}
	r.helm(t, append([]string{"install", "godwit", filepath.Join(top, "dist/helm/godwit"), "--wait"}, set...)...)
	if _, err := fixture.Kubectl(t.Context(), l, "wait", "--for=condition=Ready", "nodes", "--all", "--timeout="+patience.String()); err != nil {
		t.Fatal(err)
	}
	return r
}

// helm runs it in the lab.
func (r release) helm(t *testing.T, args ...string) {
	t.Helper()
	if said, err := helm(t, r.top, append(args, "--kubeconfig="+r.lab.Kubeconfig(), "--namespace=default", "--timeout="+patience.String())...); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
}

// upgraded gives pods another MTU by a value of the chart, and keeps the others.
func (r release) upgraded(t *testing.T) {
	const mtu = 1300
	r.helm(t, "upgrade", "godwit", filepath.Join(r.top, "dist/helm/godwit"), "--wait", "--reuse-values", fmt.Sprintf("--set-string=mtu=%d", mtu))
	rollout(t, r.lab, "daemonset/godwit-agent", "deployment/godwit-controller")
	ns := newNamespace(t, r.client)
	echoPod(t, r.client, ns, "node2")
	said, err := fixture.Kubectl(t.Context(), r.lab, "-n", ns, "exec", "echo-node2", "--", "ip", "link", "show", "eth0")
	if err != nil || !strings.Contains(said, fmt.Sprintf("mtu %d ", mtu)) {
		t.Errorf("eth0 of a pod that started after the upgrade is %q (%v), want mtu %d", said, err, mtu)
	}
}
