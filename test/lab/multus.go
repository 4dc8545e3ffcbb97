package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/test/lab/binaries"
	"github.com/godwit-cni/godwit/test/lab/boot"
	"github.com/godwit-cni/godwit/test/lab/multus"
)

const (
	multusTimeout = 10 * time.Minute
	// multusToken is for how long Multus may ask the API server: longer than a lab is used for.
	multusToken int64 = 30 * 24 * 3600
	// godwitConf is what godwit-agent installs.
	godwitConf = "/etc/cni/net.d/05-godwit.conflist"
)

// StartMultus puts Multus' thin plugin before Godwit on every node that runs: the pods that come from now on may have second networks. It is no part of Up: with it every
// pod's way into the network has a further step, which asks the API server. It changes nothing if it is there.
func (l *Lab) StartMultus(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, multusTimeout)
	defer cancel()
	program, err := binaries.Multus(ctx, l.log)
	if err != nil {
		return err
	}
	objects, err := ReadObjects(strings.NewReader(multus.Manifest()))
	if err != nil {
		return err
	}
	if err := l.Apply(ctx, objects...); err != nil {
		return err
	}
	token, err := l.multusToken(ctx)
	if err != nil {
		return err
	}
	bin, err := os.ReadFile(program)
	if err != nil {
		return fmt.Errorf("read Multus: %w", err)
	}
	for _, node := range l.NodeNames() {
		spec, err := boot.ReadSpec(l.specPath(node))
		if err != nil {
			return err
		}
		first, err := l.Exec(ctx, node, "cat", godwitConf)
		if err != nil {
			return err
		}
		conf, err := multus.Configuration([]byte(first))
		if err != nil {
			return err
		}
		kubeconfig, err := l.kubeconfig(multus.Account, token, l.apiOf(spec))
		if err != nil {
			return err
		}
		for _, f := range []struct {
			path    string
			content []byte
			mode    string
		}{{multus.Program, bin, "0755"}, {multus.Kubeconfig, kubeconfig, "0600"}, {multus.Conf, conf, "0644"}} { // the runtime sees the configuration last
			if err := l.install(ctx, node, f.path, f.mode, f.content); err != nil {
				return err
			}
		}
	}
	return nil
}

// StopMultus takes Multus' configuration off the nodes that run: the pods that come from now on have one interface. Those that have more must be gone.
func (l *Lab) StopMultus(ctx context.Context) error {
	var errs []error
	for _, node := range l.NodeNames() {
		if _, err := l.Exec(ctx, node, "rm", "-f", multus.Conf); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// multusToken makes a token of Multus' account.
func (l *Lab) multusToken(ctx context.Context) (string, error) {
	client, err := l.Client()
	if err != nil {
		return "", err
	}
	seconds := multusToken
	answer, err := client.CoreV1().ServiceAccounts(multus.Namespace).CreateToken(ctx, multus.Account,
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("make a token for Multus: %w", err)
	}
	return answer.Status.Token, nil
}

// install writes a file on a node, under another name first: containers may be starting.
func (l *Lab) install(ctx context.Context, node, file, mode string, content []byte) error {
	tmp := path.Join(path.Dir(file), "."+path.Base(file)+".tmp")
	script := `mkdir -p "$(dirname "$0")" && cat >"$0" && chmod "$2" "$0" && mv "$0" "$1"`
	var stderr bytes.Buffer
	if err := l.Run(ctx, node, Stdio{In: bytes.NewReader(content), Err: &stderr}, "sh", "-c", script, tmp, file, mode); err != nil {
		return fmt.Errorf("write %s on %s: %w: %s", file, node, err, lastBytes(stderr.String(), 1000))
	}
	return nil
}
