package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	apiTimeout   = 10 * time.Minute
	nodesTimeout = 15 * time.Minute
	poll         = 50 * time.Millisecond
	// patience is how long a wait is not worth a message.
	patience = 5 * time.Second
)

// RESTConfig is the administrator's, with limits that no test reaches.
func (l *Lab) RESTConfig() (*rest.Config, error) {
	c, err := clientcmd.BuildConfigFromFlags("", l.Kubeconfig())
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", l.Kubeconfig(), err)
	}
	c.QPS, c.Burst = 500, 1000
	return c, nil
}

// Client is a Kubernetes client for the lab's administrator.
func (l *Lab) Client() (*kubernetes.Clientset, error) {
	c, err := l.RESTConfig()
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(c)
}

// awaitAPI returns when the API server is ready.
func (l *Lab) awaitAPI(ctx context.Context) error {
	client, err := l.Client()
	if err != nil {
		return err
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	for {
		body, err := client.RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		if err == nil {
			if took := time.Since(start); took > time.Second {
				l.log.Info("the API server is ready", "waited", took.Round(100*time.Millisecond))
			}
			return nil
		}
		if !l.machine(hubName).Process.alive() {
			return fmt.Errorf("the hub ended while it was waited for: see %s", l.path(logsDir, hubName, initLog))
		}
		if pauseErr := pause(ctx, poll); pauseErr != nil {
			return fmt.Errorf("the API server is not ready after %s: %w: %s: see %s", time.Since(start).Round(time.Second), errors.Join(err, pauseErr),
				body, l.path(logsDir, hubName, "kube-apiserver.log"))
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// nodeStage is how far nodes are that are waited for.
type nodeStage string

const (
	// nodesReported: their kubelets have reported since they booted. More does not come where there is no network plugin.
	nodesReported nodeStage = "reported"
	// nodesReady: they are Ready besides.
	nodesReady nodeStage = "ready"
)

// nodesWith is how far nodes come with a network plugin.
func nodesWith(cni string) nodeStage {
	if cni == CNINone {
		return nodesReported
	}
	return nodesReady
}

// awaitNodes returns when the nodes that should run are as far as that. The list is polled: it is short, and so is the wait.
func (l *Lab) awaitNodes(ctx context.Context, stage nodeStage) error {
	client, err := l.Client()
	if err != nil {
		return err
	}
	start, told := time.Now(), ""
	ctx, cancel := context.WithTimeout(ctx, nodesTimeout)
	defer cancel()
	for {
		missing, err := l.missingNodes(ctx, client, stage)
		if err == nil && len(missing) == 0 {
			if took := time.Since(start); took > time.Second {
				l.log.Info("the nodes are there", "stage", stage, "waited", took.Round(100*time.Millisecond))
			}
			return nil
		}
		if now := fmt.Sprint(missing, err); now != told && time.Since(start) > patience {
			told = now
			l.log.Info("waiting for nodes", "missing", strings.Join(missing, "; "), "err", err)
		}
		if pauseErr := pause(ctx, poll); pauseErr != nil {
			return errors.Join(fmt.Errorf("nodes are not ready after %s: see the nodes' logs in %s:\n%s", time.Since(start).Round(time.Second),
				l.path(logsDir), strings.Join(missing, "\n")), err, pauseErr)
		}
	}
}

// missingNodes says of each node that is not as it should be what it lacks.
func (l *Lab) missingNodes(ctx context.Context, client kubernetes.Interface, stage nodeStage) ([]string, error) {
	list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	found := map[string]*corev1.Node{}
	for i := range list.Items {
		found[list.Items[i].Name] = &list.Items[i]
	}
	var missing []string
	for _, name := range l.NodeNames() {
		m := l.machine(name)
		if m.Stopped {
			continue
		}
		if why := lacks(found[name], m.Started, stage); why != "" {
			missing = append(missing, name+": "+why)
		}
	}
	return missing, nil
}

// lacks says why a node is not as far as it should be, or nothing.
func lacks(node *corev1.Node, booted time.Time, stage nodeStage) string {
	if node == nil {
		return "its kubelet has not registered"
	}
	for _, c := range node.Status.Conditions {
		if c.Type != corev1.NodeReady {
			continue
		}
		// Times in the API have no fractions of a second.
		if c.LastHeartbeatTime.Time.Before(booted.Truncate(time.Second)) {
			return "its kubelet has not reported since it booted"
		}
		if stage == nodesReady && c.Status != corev1.ConditionTrue {
			return short(c.Message)
		}
		return ""
	}
	return "its kubelet has not reported"
}

// short leaves of a kubelet's nested message what is at its end.
func short(message string) string {
	for _, before := range []string{"message:", "returns error: "} {
		if i := strings.LastIndex(message, before); i >= 0 {
			message = message[i+len(before):]
		}
	}
	return message
}
