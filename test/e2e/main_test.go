package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/binaries"
	"github.com/godwit-cni/godwit/test/lab/suite"
)

// cluster is the lab that all tests share.
var cluster struct {
	*lab.Lab
	api     client.WithWatch
	nb      *ovn.NB // for looking
	kubectl string
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctrl.SetLogger(logr.FromSlogHandler(log.Handler()))
	stays := labExists()
	l, err := lab.Up(ctx, lab.Config{Log: log})
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1
	}
	down := func() int {
		if stays {
			fmt.Fprintln(os.Stderr, "the lab was up before and stays up; `make lab-down` removes it")
			return 0
		}
		// Not ctx: it may be what has ended.
		if err := l.Down(context.WithoutCancel(ctx)); err != nil {
			fmt.Fprintln(os.Stderr, "lab:", err)
			return 1
		}
		return 0
	}
	defer suite.DownWhenStopped(ctx, down)()
	if err := connect(ctx, l, log); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		down()
		return 1
	}
	before, err := crashes(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		down()
		return 1
	}
	code := m.Run()
	after, err := crashes(context.WithoutCancel(ctx))
	after = slices.DeleteFunc(after, func(c string) bool { return slices.Contains(before, c) })
	if err != nil || len(after) > 0 {
		fmt.Fprintf(os.Stderr, "FAIL: parts of the lab crashed while the tests ran (%v):\n%s\n", err, strings.Join(after, "\n"))
		code = max(code, 1)
	}
	if err := chaos.close(context.WithoutCancel(ctx)); err != nil {
		fmt.Fprintln(os.Stderr, "remove the VMs of TestChaos:", err)
		code = max(code, 1)
	}
	return max(code, down())
}

// crashes are those of the lab's services, and of Godwit's containers the last ones, as far as their pods are there still.
func crashes(ctx context.Context) ([]string, error) {
	all, err := cluster.Crashes()
	var pods corev1.PodList
	if err := errors.Join(err, cluster.api.List(ctx, &pods, client.InNamespace(lab.Namespace))); err != nil {
		return nil, err
	}
	for i := range pods.Items {
		for _, c := range pods.Items[i].Status.ContainerStatuses {
			if end := c.LastTerminationState.Terminated; end != nil && slices.Contains(crashCodes, end.ExitCode) {
				all = append(all, fmt.Sprintf("container %s of pod %s (%s) ended with %d at %s", c.Name, pods.Items[i].Name, end.ContainerID, end.ExitCode, end.FinishedAt))
			}
		}
	}
	return all, nil
}

// crashCodes are exit codes: of a panic in Go, of SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE and SIGSEGV.
var crashCodes = []int32{2, 132, 133, 134, 135, 136, 139}

func labExists() bool {
	dir, err := lab.Dir("default")
	if err != nil {
		return false
	}
	_, err = lab.Open(dir)
	return !errors.Is(err, lab.ErrNoLab)
}

func connect(ctx context.Context, l *lab.Lab, log *slog.Logger) error {
	set, err := binaries.Ensure(ctx, log)
	if err != nil {
		return err
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", l.Kubeconfig())
	if err != nil {
		return err
	}
	cfg.QPS, cfg.Burst = -1, 0
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return err
	}
	cluster.Lab, cluster.kubectl = l, set.Path("kubectl")
	if cluster.api, err = client.NewWithWatch(cfg, client.Options{Scheme: scheme}); err != nil {
		return err
	}
	cluster.nb, err = ovn.Connect(ctx, ovn.Config{Endpoints: []string{l.NB()}, Registerer: prometheus.NewRegistry(), Logger: log})
	return err
}

// kubectl runs the real one and returns its standard output.
func kubectl(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, cluster.kubectl, append([]string{"--kubeconfig", cluster.Kubeconfig()}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

// nbctl asks the northbound database, or changes it by hand, and sbctl the southbound one. A member that does not lead its cluster passes changes on.
func nbctl(ctx context.Context, args ...string) (string, error) {
	return cluster.Exec(ctx, "hub", append([]string{"ovn-nbctl", "--no-leader-only", "--db=" + cluster.NB()}, args...)...)
}

func sbctl(ctx context.Context, args ...string) (string, error) {
	return cluster.Exec(ctx, "hub", append([]string{"ovn-sbctl", "--no-leader-only", "--db=" + cluster.SB()}, args...)...)
}

// inPod runs a command in a pod; a reach.Exec. probe exits non-zero when a target failed, and its lines say which: then there is output and no error.
func inPod(ctx context.Context, namespace, pod string, cmd ...string) (string, error) {
	out, err := kubectl(ctx, append([]string{"-n", namespace, "exec", pod, "--"}, cmd...)...)
	if err != nil && cmd[0] == "/bin/probe" && out != "" {
		return out, nil
	}
	return out, err
}

// eventually waits until check has nothing to say any more: for within on a machine as the tests were written on, with patience on others.
func eventually(t *testing.T, within time.Duration, check func(ctx context.Context) error) {
	t.Helper()
	within = patience(within)
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	var last error
	for {
		err := check(ctx)
		if err == nil {
			return
		}
		if last == nil || ctx.Err() == nil { // what the end of the time did to a check is not what was wrong
			last = err
		}
		select {
		case <-ctx.Done():
			t.Fatalf("after %s: %v", within, last)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// consistent fails the test when API, NB, SB, Open vSwitch and kernel do not say the same, once what is under way has settled.
func consistent(t *testing.T) {
	t.Helper()
	eventually(t, 20*time.Second, func(ctx context.Context) error {
		diffs, err := cluster.Check(ctx)
		if err == nil && len(diffs) > 0 {
			err = fmt.Errorf("%d differences: %v", len(diffs), diffs)
		}
		return err
	})
}
