package e2e

import (
	"context"
	"crypto/rand"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/pkg/issuer"
	"github.com/godwit-cni/godwit/pkg/pki"
	"github.com/godwit-cni/godwit/test/lab"
)

// crowd lets a node's ovs-vswitchd keep one flow in the datapath, as if there were more than its processors can look after, and sends packets from the node to an address: each is a question to it. What it
// returns, and the end of the test, ends both.
func crowd(t *testing.T, node string, to netip.Addr) (relieve func()) {
	t.Helper()
	if _, err := cluster.Exec(t.Context(), node, "ovs-vsctl", "set", "Open_vSwitch", ".", "other_config:flow-limit=1"); err != nil {
		t.Fatal(err)
	}
	sending, stop := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		_, _ = cluster.Exec(sending, node, "busybox", "ping", "-q", "-i", "0.02", to.String()) // it ends by being stopped
	}()
	return undo(t, func(ctx context.Context) error {
		stop()
		<-stopped
		_, err := cluster.Exec(ctx, node, "ovs-vsctl", "remove", "Open_vSwitch", ".", "other_config", "flow-limit")
		return err
	})
}

// age gives a node a certificate of its authority that ends in ten days, as it has one when nobody has signed another for weeks, and starts its agent again, which looks at it then.
func age(t *testing.T, node string) {
	t.Helper()
	var authority corev1.Secret
	if err := cluster.api.Get(t.Context(), types.NamespacedName{Namespace: lab.Namespace, Name: issuer.NodesAuthority}, &authority); err != nil {
		t.Fatal(err)
	}
	by, err := pki.ParseAuthority(authority.Data[pki.CertFile], authority.Data[pki.KeyFile])
	if err != nil {
		t.Fatal(err)
	}
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := pki.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	const left = 10 * 24 * time.Hour
	cert, err := by.Sign(rand.Reader, pki.Leaf{Name: node, Usage: pki.Client, Key: key.Public()}, time.Now().Add(left-pki.LeafLife))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{pki.CertFile: cert, pki.KeyFile: secret} {
		if _, err := cluster.Exec(t.Context(), node, "sh", "-c", `printf %s "$1" >/etc/godwit/tls/"$0"`, name, string(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := kill(t.Context(), node, "godwit-agent"); err != nil {
		t.Fatal(err)
	}
}
