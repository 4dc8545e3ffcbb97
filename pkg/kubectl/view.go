package kubectl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
)

// view is an interface of a VM or of a pod that is looked at.
type view struct {
	// name is the VM's or the pod's, key that of the VM's Port, or of the pod.
	name string
	key  client.ObjectKey
	port ident.PortName
}

// moves says whether it can be on one node after another: a VM's.
func (v view) moves() bool { return ident.IsVMPort(v.port) }

// kinds are those whose objects say where it is.
func (v view) kinds() []client.ObjectList {
	if v.moves() {
		return []client.ObjectList{&v1alpha1.PortList{}, &v1alpha1.PortMigrationList{}}
	}
	return []client.ObjectList{&corev1.PodList{}}
}

// viewOf finds the interface of a VM, or else of a pod; nic is empty for the one on the pod network.
func (c cluster) viewOf(ctx context.Context, name, nic string) (view, error) {
	var list v1alpha1.PortList
	if err := c.api.List(ctx, &list, client.InNamespace(c.namespace)); err != nil {
		return view{}, fmt.Errorf("list the Ports in namespace %s: %w", c.namespace, explained(err))
	}
	if ports := interfacesOf(list.Items, name); len(ports) > 0 {
		return vmView(ports, nic)
	}
	var pod corev1.Pod
	err := c.api.Get(ctx, client.ObjectKey{Namespace: c.namespace, Name: name}, &pod)
	if apierrors.IsNotFound(err) {
		return view{}, fmt.Errorf("namespace %s has neither a Port of a VM %s nor a pod of that name: kubectl get ports,pods -n %s", c.namespace, name, c.namespace)
	}
	if err != nil {
		return view{}, fmt.Errorf("read pod %s/%s: %w", c.namespace, name, err)
	}
	if pod.Spec.HostNetwork {
		return view{}, fmt.Errorf("pod %s/%s is on the network of node %s: look there", pod.Namespace, pod.Name, pod.Spec.NodeName)
	}
	id, err := v1alpha1.ParseIdentity(pod.Annotations[v1alpha1.IdentityAnnotation])
	if err != nil {
		return view{}, fmt.Errorf("pod %s/%s has no address yet: %w", pod.Namespace, pod.Name, err)
	}
	if id.VMI != nil {
		return c.viewOf(ctx, id.VMI.Name, nic)
	}
	links := []string{ident.FirstInterface}
	for _, n := range id.NICs {
		links = append(links, n.Interface)
	}
	switch {
	case nic == "" || nic == ident.FirstInterface:
		nic = ident.DefaultNetwork
	case !slices.Contains(links, nic):
		return view{}, fmt.Errorf("pod %s/%s has no interface %s: it has %s", pod.Namespace, pod.Name, nic, strings.Join(links, ", "))
	}
	return view{name: pod.Name, key: client.ObjectKeyFromObject(&pod), port: ident.PodPort(pod.Namespace, pod.Name, nic)}, nil
}

// vmView is the one of a VM's Ports that is meant.
func vmView(ports []v1alpha1.Port, nic string) (view, error) {
	vm := ports[0].Spec.Target.Name
	wanted := nic
	if wanted == "" {
		wanted = ident.DefaultNetwork
	}
	var has []string
	for i := range ports {
		if network := ports[i].Spec.Target.Network; network == wanted || nic == "" && len(ports) == 1 {
			return view{name: vm, key: client.ObjectKeyFromObject(&ports[i]), port: ident.VMPort(ports[i].Namespace, vm, network)}, nil
		}
		has = append(has, ports[i].Spec.Target.Network)
	}
	if nic == "" {
		return view{}, fmt.Errorf("VM %s/%s has several interfaces: --nic says which: %s", ports[0].Namespace, vm, strings.Join(has, ", "))
	}
	return view{}, fmt.Errorf("VM %s/%s has no interface %s: it has %s", ports[0].Namespace, vm, nic, strings.Join(has, ", "))
}

// place is where a view is: on no node, on one, or on its way from one to another.
type place struct{ nodes []string }

// text tells it.
func (p place) text(v view) string {
	switch len(p.nodes) {
	case 0:
		return v.name + " is on no node: waiting until it is"
	case 1:
		return v.name + " is on " + p.nodes[0]
	}
	return fmt.Sprintf("%s moves from %s: what either sees is shown", v.name, strings.Join(p.nodes, " to "))
}

// errOver says that what was looked at is no more.
var errOver = errors.New("it is no more")

// place reads where a view is.
func (c cluster) place(ctx context.Context, v view) (place, error) {
	if !v.moves() {
		return c.podPlace(ctx, v)
	}
	var port v1alpha1.Port
	if err := c.api.Get(ctx, v.key, &port); err != nil {
		return place{}, overWhenGone(fmt.Errorf("read Port %s: %w", v.key, err), err)
	}
	var moves v1alpha1.PortMigrationList
	if err := c.api.List(ctx, &moves, client.InNamespace(v.key.Namespace)); err != nil {
		return place{}, fmt.Errorf("list the migrations in namespace %s: %w", v.key.Namespace, explained(err))
	}
	for i := range moves.Items {
		if pm := &moves.Items[i]; pm.Spec.VMI.Name == v.name && !pm.Status.Over() {
			return place{nodes: []string{pm.Spec.Source.Node, pm.Spec.Target.Node}}, nil
		}
	}
	if port.Status.Node == "" {
		return place{}, nil
	}
	return place{nodes: []string{port.Status.Node}}, nil
}

func (c cluster) podPlace(ctx context.Context, v view) (place, error) {
	var pod corev1.Pod
	if err := c.api.Get(ctx, v.key, &pod); err != nil {
		return place{}, overWhenGone(fmt.Errorf("read pod %s: %w", v.key, err), err)
	}
	if ended(&pod) {
		return place{}, fmt.Errorf("pod %s: %w", v.key, errOver)
	}
	if pod.Spec.NodeName == "" {
		return place{}, nil
	}
	return place{nodes: []string{pod.Spec.NodeName}}, nil
}

// overWhenGone makes an error that of an object that is gone, where it is.
func overWhenGone(err, cause error) error {
	if apierrors.IsNotFound(cause) {
		return fmt.Errorf("%w: %w", err, errOver)
	}
	return err
}

// nodeAgent is the container of a node's agent.
type nodeAgent struct {
	container
	// args are what the agent was started with.
	args []string
}

// as are those of its flags that an errand has too, so that it looks where the agent does. A value that the kubelet puts in, $(NAME), is not known here.
func (a nodeAgent) as(flags ...string) []string {
	var out []string
	for i, arg := range a.args {
		flag, value, given := strings.Cut(arg, "=")
		if !given && i+1 < len(a.args) {
			value = a.args[i+1]
		}
		if slices.Contains(flags, flag) && !strings.Contains(value, "$(") {
			out = append(out, flag+"="+value)
		}
	}
	return out
}

// agentOn is the agent that runs on a node, ready or not.
func (c cluster) agentOn(ctx context.Context, node string) (nodeAgent, error) {
	var pods corev1.PodList
	if err := c.api.List(ctx, &pods, client.InNamespace(c.system), client.MatchingLabels{labelName: "godwit", labelComponent: agentComponent}); err != nil {
		return nodeAgent{}, fmt.Errorf("list the agents in namespace %s: %w", c.system, err)
	}
	for i := range pods.Items {
		if p := &pods.Items[i]; p.Spec.NodeName == node && p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
			a := nodeAgent{container: container{pod: client.ObjectKeyFromObject(p), name: agentComponent}}
			for j := range p.Spec.Containers {
				if p.Spec.Containers[j].Name == agentComponent {
					a.args = p.Spec.Containers[j].Args
				}
			}
			return a, nil
		}
	}
	return nodeAgent{}, fmt.Errorf("no agent of Godwit runs on node %s: kubectl get pods -n %s -l %s=%s -o wide (--system-namespace, if Godwit runs elsewhere)", node, c.system, labelComponent, agentComponent)
}

// changes is marked whenever an object of one of the kinds may have changed in the namespace. A watch that ends is begun anew.
func (c cluster) changes(ctx context.Context, kinds ...client.ObjectList) <-chan struct{} {
	changed := make(chan struct{}, 1)
	mark := func() {
		select {
		case changed <- struct{}{}:
		default: // marked already
		}
	}
	for _, kind := range kinds {
		go func() {
			for ctx.Err() == nil {
				c.watchKind(ctx, kind, mark)
				mark()
				select {
				case <-ctx.Done():
				case <-time.After(lookAgain):
				}
			}
		}()
	}
	return changed
}

// watchKind marks each change until the watch ends.
func (c cluster) watchKind(ctx context.Context, kind client.ObjectList, mark func()) {
	w, err := c.api.Watch(ctx, kind, client.InNamespace(c.namespace))
	if err != nil {
		return // whoever is told that something may have changed will hear of it
	}
	defer w.Stop()
	mark() // what has changed before the watch began
	for {
		select {
		case <-ctx.Done():
			return
		case _, more := <-w.ResultChan():
			if !more {
				return
			}
			mark()
		}
	}
}
