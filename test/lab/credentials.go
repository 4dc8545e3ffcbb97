package lab

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/godwit-cni/godwit/test/lab/boot"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
	"github.com/godwit-cni/godwit/test/lab/pki"
)

// users of the API server, besides its nodes.
var users = []struct{ name, group string }{
	{"admin", "system:masters"}, {"system:kube-controller-manager", ""}, {"system:kube-scheduler", ""},
	{kubevirt.User, ""},
}

// makeCredentials makes what the API server proves itself with and knows its users by, once in a lab's life.
func (l *Lab) makeCredentials(now time.Time) error {
	dir := l.path(secretsDir)
	// Written last, so it says that all are there.
	done := filepath.Join(dir, boot.Tokens)
	if _, err := os.Stat(done); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make a directory for secrets: %w", err)
	}
	ca, err := pki.NewAuthority(now)
	if err != nil {
		return err
	}
	serving := append(addrs(hostAddresses(DualStack, mgmtNet, hubHost)), netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback())
	for _, n := range svcNet {
		serving = append(serving, n.Addr().Next()) // the Service "kubernetes"
	}
	names := []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
	cert, key, err := ca.Server(now, "kube-apiserver", names, serving)
	if err != nil {
		return err
	}
	kubeletCert, kubeletKey, err := ca.Client(now, "kube-apiserver", "system:masters")
	if err != nil {
		return err
	}
	account, err := pki.SigningKey()
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name    string
		content []byte
	}{
		{boot.CACert, ca.Certificate()}, {boot.ServerCert, cert}, {boot.ServerKey, key}, {boot.KubeletCert, kubeletCert}, {boot.KubeletKey, kubeletKey},
		{boot.AccountKey, account}, {boot.Tokens, tokens()},
	} {
		if err := pki.WriteSecret(filepath.Join(dir, f.name), f.content); err != nil {
			return err
		}
	}
	return nil
}

// tokens is the API server's file of users. It is read once, so it has all the nodes that there may ever be.
func tokens() []byte {
	var b strings.Builder
	for _, u := range users {
		fmt.Fprintf(&b, "%s,%s,%s,%q\n", pki.Token(), u.name, u.name, u.group)
	}
	for i := 1; i <= maxNodes; i++ {
		fmt.Fprintf(&b, "%s,system:node:%s,%s,%q\n", pki.Token(), nodeName(i), nodeName(i), "system:nodes")
	}
	return []byte(b.String())
}

func (l *Lab) token(user string) (string, error) {
	b, err := os.ReadFile(l.path(secretsDir, boot.Tokens))
	if err != nil {
		return "", fmt.Errorf("read the tokens: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(line, ",", 3); len(f) == 3 && f[1] == user {
			return f[0], nil
		}
	}
	return "", fmt.Errorf("%s has no token of user %s: a lab that is older than that user has to be made anew: godwit-lab down", l.path(secretsDir, boot.Tokens), user)
}

// writeKubeconfig writes a kubeconfig with everything in it.
func (l *Lab) writeKubeconfig(path, user, server string) error {
	token, err := l.token(user)
	if err != nil {
		return err
	}
	b, err := l.kubeconfig(user, token, server)
	if err != nil {
		return err
	}
	return pki.WriteSecret(path, b)
}

// apiOf is where a node reaches the API server.
func (l *Lab) apiOf(spec *boot.Spec) string {
	return "https://" + netip.AddrPortFrom(spec.HubIPs[0], boot.APIPort).String()
}

// kubeconfig is a kubeconfig's content.
func (l *Lab) kubeconfig(user, token, server string) ([]byte, error) {
	ca, err := os.ReadFile(l.path(secretsDir, boot.CACert))
	if err != nil {
		return nil, fmt.Errorf("read the authority's certificate: %w", err)
	}
	name := "godwit-lab-" + l.name()
	type object = map[string]any
	b, err := yaml.Marshal(object{
		"apiVersion": "v1", "kind": "Config", "current-context": name,
		"clusters": []object{{"name": name, "cluster": object{"server": server, "certificate-authority-data": base64.StdEncoding.EncodeToString(ca)}}},
		"users":    []object{{"name": user, "user": object{"token": token}}},
		"contexts": []object{{"name": name, "context": object{"cluster": name, "user": user}}},
	})
	if err != nil {
		return nil, fmt.Errorf("write a kubeconfig: %w", err)
	}
	return b, nil
}

// deploySecrets gives a machine those that it needs, and no others.
func (l *Lab) deploySecrets(spec *boot.Spec) error {
	if err := makeDirs(spec); err != nil {
		return err
	}
	to := func(name string) string { return filepath.Join(spec.Secrets(), name) }
	names := []string{boot.CACert}
	switch spec.Kind {
	case boot.Hub:
		names = append(names, boot.ServerCert, boot.ServerKey, boot.KubeletCert, boot.KubeletKey, boot.AccountKey, boot.Tokens)
		local := fmt.Sprintf("https://127.0.0.1:%d", boot.APIPort)
		if err := errors.Join(
			l.writeKubeconfig(to(boot.ManagerConfig), "system:kube-controller-manager", local),
			l.writeKubeconfig(to(boot.SchedConfig), "system:kube-scheduler", local),
			l.writeKubeconfig(to(boot.KubeVirtConfig), kubevirt.User, local),
		); err != nil {
			return err
		}
	case boot.Node:
		if err := l.writeKubeconfig(to(boot.NodeConfig), "system:node:"+spec.Name, l.apiOf(spec)); err != nil {
			return err
		}
	case boot.Outside:
		return nil
	}
	for _, name := range names {
		b, err := os.ReadFile(l.path(secretsDir, name))
		if err != nil {
			return fmt.Errorf("read a secret: %w", err)
		}
		if err := pki.WriteSecret(to(name), b); err != nil {
			return err
		}
	}
	return nil
}
