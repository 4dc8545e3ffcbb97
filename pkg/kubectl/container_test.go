package kubectl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// answers are containers that answer a command line with a recorded output, by "POD/CONTAINER: ARGS"; what is not there fails.
type answers map[string]answer

type answer struct {
	stdout, stderr string
	code           int
}

// run implements containers.
func (a answers) run(_ context.Context, p program) error {
	line := fmt.Sprintf("%s/%s: %s", p.in.pod.Name, p.in.name, strings.Join(p.args, " "))
	said, ok := a[line]
	if !ok {
		return fmt.Errorf("nobody has recorded what %q says", line)
	}
	for w, text := range map[io.Writer]string{p.stdout: said.stdout, p.stderr: said.stderr} {
		if w == nil {
			continue
		}
		if _, err := io.WriteString(w, text); err != nil {
			return err
		}
	}
	if said.code != 0 {
		return &ExitError{Code: said.code, what: p.args[0] + " in " + p.in.String()}
	}
	return nil
}

// clusterOf is a cluster of objects, with containers that answer as recorded.
func clusterOf(t *testing.T, in containers, objects ...client.Object) cluster {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := kinds(scheme); err != nil {
		t.Fatal(err)
	}
	ofVM := func(o client.Object) []string { return []string{o.(*v1alpha1.PortMigration).Spec.VMI.Name} }
	api := fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).WithIndex(&v1alpha1.PortMigration{}, "spec.vmi.name", ofVM).Build()
	return cluster{api: api, containers: in, namespace: "shop", system: systemNamespace}
}

// ovnPod is a running pod of a component of OVN's.
func ovnPod(name, component, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: systemNamespace, Name: name, Labels: map[string]string{labelName: "godwit", labelComponent: component}},
		Spec:       corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
}

func node(name string) *corev1.Node { return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}} }

func TestOutputOfAProgramThatFails(t *testing.T) {
	in := container{pod: client.ObjectKey{Namespace: systemNamespace, Name: "ovn-central-0"}, name: "nb"}
	c := answers{"ovn-central-0/nb: ovn-nbctl get nothing": {stdout: "half", stderr: "ovn-nbctl: unknown table\n", code: 3}}
	out, err := output(t.Context(), c, in, "ovn-nbctl", "get", "nothing")
	want := "ovn-nbctl in container nb of pod godwit-system/ovn-central-0: exited with 3: ovn-nbctl: unknown table"
	if out != "half" || err == nil || err.Error() != want || ExitCode(err) != 3 {
		t.Errorf("got %q, %v, exit code %d", out, err, ExitCode(err))
	}
}

func TestExitCode(t *testing.T) {
	for want, err := range map[int]error{0: nil, 1: errors.New("no API server"), 7: fmt.Errorf("get: %w", &ExitError{Code: 7})} {
		if got := ExitCode(err); got != want {
			t.Errorf("exit code %d of %v, want %d", got, err, want)
		}
	}
}

// What the API server refuses is told with what is missing, whichever way it was asked.
func TestProgramThatMayNotRun(t *testing.T) {
	var methods []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		methods = append(methods, r.Method+" "+r.URL.Path)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403,"message":"pods \"ovn-central-0\" is forbidden: User \"ann\" cannot create resource \"pods/exec\""}`)
	}))
	defer server.Close()
	in := container{pod: client.ObjectKey{Namespace: systemNamespace, Name: "ovn-central-0"}, name: "nb"}
	_, err := output(t.Context(), execs{&rest.Config{Host: server.URL}}, in, "ovn-nbctl", "show")
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"ovn-nbctl in container nb of pod godwit-system/ovn-central-0", `User "ann" cannot create resource "pods/exec"`, "kubectl auth can-i create pods/exec -n godwit-system"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	path := "/api/v1/namespaces/godwit-system/pods/ovn-central-0/exec"
	if got := strings.Join(methods, ", "); got != "GET "+path+", POST "+path {
		t.Errorf("asked %s", got)
	}
}

func TestPodsOfOVN(t *testing.T) {
	gone := ovnPod("ovs-node-b", switchComponent, "node2")
	gone.Status.Phase = corev1.PodFailed
	c := clusterOf(t, nil, node("node1"), node("node2"), ovnPod("ovs-node-a", switchComponent, "node1"), gone)
	in, err := c.on(t.Context(), "node1", switchComponent, "vswitchd")
	if err != nil || in.String() != "container vswitchd of pod godwit-system/ovs-node-a" {
		t.Errorf("got %s, %v", in, err)
	}
	for _, test := range []struct{ node, component, want string }{
		{"node2", switchComponent, "no pod of ovs-node runs on node2: kubectl get pods -n godwit-system"},
		{"node3", switchComponent, `nodes "node3" not found`},
		{"node1", controllerComponent, "OVN does not run as pods of Godwit's there"},
	} {
		if _, err := c.on(t.Context(), test.node, test.component, "x"); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s on %s: got %v, want %q", test.component, test.node, err, test.want)
		}
	}
}
