package kubectl

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// container is where a program is run.
type container struct {
	pod  client.ObjectKey
	name string
}

func (c container) String() string {
	return fmt.Sprintf("container %s of pod %s/%s", c.name, c.pod.Namespace, c.pod.Name)
}

// program is what is run in a container. Streams that are nil are not there: the program reads nothing, what it writes is dropped.
type program struct {
	in     container
	args   []string
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
}

// containers runs programs in containers. Tests have one that answers by itself.
type containers interface {
	// run returns when the program has ended, or when ctx does: what was begun may go on then, where it reads nothing from stdin. The error is an *ExitError where the
	// program itself said, by its exit code, that it failed.
	run(ctx context.Context, p program) error
}

// ExitError is the end of a program that ran and exited with another code than 0.
type ExitError struct {
	Code int
	// where and stderr are for those who want more than the code: stderr is empty where it was passed on.
	what, stderr string
}

// Error implements error.
func (e *ExitError) Error() string {
	if e.stderr == "" {
		return fmt.Sprintf("%s: exited with %d", e.what, e.Code)
	}
	return fmt.Sprintf("%s: exited with %d: %s", e.what, e.Code, e.stderr)
}

// ExitCode is what the command exits with: 0 without an error, a program's own code where one was passed through, 1 else.
func ExitCode(err error) int {
	var exit *ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.Code > 0:
		return exit.Code
	}
	return 1
}

// output runs a program that reads nothing, and returns what it wrote. What it wrote to stderr is in the error, should it fail.
func output(ctx context.Context, c containers, in container, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	err := c.run(ctx, program{in: in, args: args, stdout: &stdout, stderr: &stderr})
	var exit *ExitError
	if errors.As(err, &exit) {
		exit.stderr = strings.TrimSpace(stderr.String())
	}
	return stdout.String(), err
}

// execs runs programs by the API server's subresource pods/exec.
type execs struct{ config *rest.Config }

// run implements containers: by a WebSocket, or by SPDY where the API server, or a proxy before it, cannot do that.
func (e execs) run(ctx context.Context, p program) error {
	core, err := coreClient(e.config)
	if err != nil {
		return err
	}
	url := core.Get().Namespace(p.in.pod.Namespace).Resource("pods").Name(p.in.pod.Name).SubResource("exec").VersionedParams(&corev1.PodExecOptions{
		Container: p.in.name, Command: p.args, Stdin: p.stdin != nil, Stdout: p.stdout != nil, Stderr: p.stderr != nil,
	}, scheme.ParameterCodec).URL()
	spdy, err := remotecommand.NewSPDYExecutor(e.config, http.MethodPost, url)
	if err != nil {
		return fmt.Errorf("API server %s: %w", e.config.Host, err)
	}
	socket, err := remotecommand.NewWebSocketExecutor(e.config, http.MethodGet, url.String())
	if err != nil {
		return fmt.Errorf("API server %s: %w", e.config.Host, err)
	}
	streams := remotecommand.StreamOptions{Stdin: p.stdin, Stdout: p.stdout, Stderr: p.stderr}
	refused := socket.StreamWithContext(ctx, streams)
	if !httpstream.IsUpgradeFailure(refused) && !httpstream.IsHTTPSProxyError(refused) {
		return p.ended(refused, nil)
	}
	return p.ended(spdy.StreamWithContext(ctx, streams), refused)
}

// coreClient is a client of the API's core group, for paths alone.
func coreClient(config *rest.Config) (*rest.RESTClient, error) {
	core := rest.CopyConfig(config)
	core.APIPath, core.GroupVersion, core.NegotiatedSerializer = "/api", &corev1.SchemeGroupVersion, scheme.Codecs.WithoutConversion()
	c, err := rest.RESTClientFor(core)
	if err != nil {
		return nil, fmt.Errorf("API server %s: %w", config.Host, err)
	}
	return c, nil
}

// ended says in an operator's words how a program came to its end, or why it was not begun. The error of SPDY has but the API server's text; its reason is in that of the
// WebSocket that was refused before.
func (p program) ended(err, refused error) error {
	var exit utilexec.ExitError
	reason := err
	var upgrade *httpstream.UpgradeFailureError
	if errors.As(refused, &upgrade) {
		reason = upgrade.Cause
	}
	switch what := p.args[0] + " in " + p.in.String(); {
	case err == nil:
		return nil
	case errors.As(err, &exit):
		return &ExitError{Code: exit.ExitStatus(), what: what}
	case apierrors.IsForbidden(reason):
		return fmt.Errorf("run %s: %w: this needs the rights to create and get pods/exec in namespace %s (kubectl auth can-i create pods/exec -n %s)", what, err, p.in.pod.Namespace, p.in.pod.Namespace)
	case apierrors.IsNotFound(reason):
		return fmt.Errorf("run %s: %w: has it just been replaced? kubectl get pods -n %s", what, err, p.in.pod.Namespace)
	default:
		return fmt.Errorf("run %s: %w", what, err)
	}
}

// Components of Godwit, and of OVN as pods, by their label: yamls/install.yaml, yamls/ovn.yaml.
const (
	centralComponent    = "ovn-central"
	switchComponent     = "ovs-node"
	controllerComponent = "ovn-controller"
	agentComponent      = "agent"
	managerComponent    = "controller"
	labelName           = "app.kubernetes.io/name"
	labelComponent      = "app.kubernetes.io/component"
)

// ovnPods are the running pods of a component of OVN's, by name; on one node alone if it is named.
func (c cluster) ovnPods(ctx context.Context, component, node string) ([]corev1.Pod, error) {
	var list corev1.PodList
	if err := c.api.List(ctx, &list, client.InNamespace(c.system), client.MatchingLabels{labelName: "godwit", labelComponent: component}); err != nil {
		return nil, fmt.Errorf("list the pods of %s in namespace %s: %w", component, c.system, err)
	}
	if len(list.Items) == 0 {
		return nil, fmt.Errorf("namespace %s has no pod of %s: OVN does not run as pods of Godwit's there. Where it does elsewhere, --system-namespace says so; "+
			"where the nodes run OVN themselves, use %s", c.system, component, map[string]string{
			centralComponent: "ovn-nbctl, ovn-sbctl and ovn-trace on a node with its databases", switchComponent: "ovs-vsctl, ovs-ofctl and ovs-appctl on the node", controllerComponent: "ovn-appctl on the node",
		}[component])
	}
	var running []corev1.Pod
	for i := range list.Items {
		if p := &list.Items[i]; p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil && (node == "" || p.Spec.NodeName == node) {
			running = append(running, *p)
		}
	}
	if len(running) == 0 {
		return nil, fmt.Errorf("no pod of %s runs on %s: kubectl get pods -n %s -l %s=%s -o wide", component, cmp.Or(node, "any node"), c.system, labelComponent, component)
	}
	return running, nil
}

// on is the container of a component on a node.
func (c cluster) on(ctx context.Context, node, component, name string) (container, error) {
	if err := c.api.Get(ctx, client.ObjectKey{Name: node}, &corev1.Node{}); err != nil {
		return container{}, fmt.Errorf("node %s: %w: kubectl get nodes", node, err)
	}
	pods, err := c.ovnPods(ctx, component, node)
	if err != nil {
		return container{}, err
	}
	return container{pod: client.ObjectKeyFromObject(&pods[0]), name: name}, nil
}
