package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	current "github.com/containernetworking/cni/pkg/types/100"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/test/kernel/control"
)

// confName is the configuration that the agent writes for the runtime.
const confName = "05-godwit.conflist"

// Pod is a pod that is attached: an object and a network namespace.
type Pod struct {
	*corev1.Pod
	// Node is where it is.
	Node *Node
	// Netns is its network namespace's name in the machine.
	Netns string
	// HostLink is the node's end of its link.
	HostLink string
	// IPs are its addresses, with their networks' lengths.
	IPs []netip.Prefix
	// Gateways are the next hops of its default routes, of the addresses of the same index.
	Gateways []netip.Addr
	// MAC is its link's; MTU too, in bytes.
	MAC string
	MTU int

	removed bool
}

// Addrs are the pod's addresses, IPv4 and IPv6.
func (p *Pod) Addrs() []netip.Addr {
	out := make([]netip.Addr, 0, len(p.IPs))
	for _, ip := range p.IPs {
		out = append(out, ip.Addr())
	}
	return out
}

// In runs a command in the pod, see Cluster.In.
func (p *Pod) In(ctx context.Context, args ...string) (string, error) {
	return p.Node.cluster.In(ctx, p.Netns, args...)
}

// Namespace creates one. It is no error if there is one.
func (c *Cluster) Namespace(ctx context.Context, name string) error {
	err := c.API.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	if client.IgnoreAlreadyExists(err) != nil {
		return fmt.Errorf("create namespace %s: %w", name, err)
	}
	return nil
}

// Pod creates a pod on a node, changed by change if any, and attaches it by godwit-cni.
func (n *Node) Pod(ctx context.Context, name types.NamespacedName, change ...func(*corev1.Pod)) (*Pod, error) {
	object := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name},
		Spec:       corev1.PodSpec{NodeName: n.Name, Containers: []corev1.Container{{Name: "c", Image: "none"}}},
	}
	for _, f := range change {
		f(object)
	}
	if err := n.cluster.API.Create(ctx, object); err != nil {
		return nil, fmt.Errorf("create pod %s: %w", name, err)
	}
	p := &Pod{Pod: object, Node: n, Netns: name.Namespace + "-" + name.Name}
	if _, err := n.cluster.In(ctx, "", "ip", "netns", "add", p.Netns); err != nil {
		return nil, err
	}
	out := ""
	err := Await(ctx, "attach pod "+name.String(), func(ctx context.Context) (err error) {
		if out, err = p.cni(ctx, "ADD"); err == nil {
			return nil
		}
		// A kubelet tries again, after a DEL. On a busy machine the controller loses its lease, and the next one's takes longer than an ADD waits.
		_, delErr := p.cni(ctx, "DEL")
		return errors.Join(err, delErr)
	})
	if err != nil {
		return nil, err
	}
	return p, p.read(out)
}

// read takes what a CNI result says.
func (p *Pod) read(out string) error {
	var r current.Result
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return fmt.Errorf("read the CNI result %s: %w", out, err)
	}
	for _, i := range r.Interfaces {
		if i.Sandbox == "" {
			p.HostLink = i.Name
		} else {
			p.MAC, p.MTU = i.Mac, i.Mtu
		}
	}
	for _, ip := range r.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return fmt.Errorf("read the CNI result %s: address %s", out, ip.Address.IP)
		}
		gw, _ := netip.AddrFromSlice(ip.Gateway)
		bits, _ := ip.Address.Mask.Size()
		p.IPs, p.Gateways = append(p.IPs, netip.PrefixFrom(addr.Unmap(), bits)), append(p.Gateways, gw.Unmap())
	}
	if p.HostLink == "" || p.MAC == "" || p.MTU == 0 || len(p.IPs) == 0 {
		return fmt.Errorf("read the CNI result %s: want links, an MTU and addresses", out)
	}
	return nil
}

// cni calls the plugin that the agent has installed, with the configuration that it has written, as the runtime does.
func (p *Pod) cni(ctx context.Context, command string) (string, error) {
	c := p.Node.cluster
	conf, err := p.Node.cniConfiguration(ctx)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	id := string(p.UID)
	return c.Run(ctx, control.Command{
		Args: []string{filepath.Join(p.Node.binDir(), "godwit")}, Netns: p.Node.Name, Stdin: conf,
		Env: []string{
			"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + id, "CNI_NETNS=" + filepath.Join(control.NamespaceDir, p.Netns), "CNI_IFNAME=eth0",
			"CNI_PATH=" + p.Node.binDir(),
			fmt.Sprintf("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=%s;K8S_POD_NAME=%s;K8S_POD_INFRA_CONTAINER_ID=%s;K8S_POD_UID=%s", p.Namespace, p.Name, id, id),
		},
	})
}

// cniConfiguration is that of the plugin, made of the list's as the CNI specification has it.
func (n *Node) cniConfiguration(ctx context.Context) ([]byte, error) {
	b, err := n.cluster.ReadFile(ctx, filepath.Join(n.confDir(), confName))
	if err != nil {
		return nil, err
	}
	var list struct {
		Name    string           `json:"name"`
		Version string           `json:"cniVersion"`
		Plugins []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal(b, &list); err != nil || len(list.Plugins) == 0 {
		return nil, errors.Join(fmt.Errorf("CNI configuration of %s is %s: want a list of plugins", n.Name, b), err)
	}
	conf := list.Plugins[0]
	conf["name"], conf["cniVersion"] = list.Name, list.Version
	return json.Marshal(conf)
}

// Remove detaches the pod and deletes it. It may be called again, but not at the same time.
func (p *Pod) Remove(ctx context.Context) error {
	if p.removed {
		return nil
	}
	p.removed = true
	c := p.Node.cluster
	_, err := p.cni(ctx, "DEL")
	_, nsErr := c.In(ctx, "", "ip", "netns", "delete", p.Netns)
	now := int64(0)
	return errors.Join(err, nsErr, client.IgnoreNotFound(c.API.Delete(ctx, p.Pod, &client.DeleteOptions{GracePeriodSeconds: &now})))
}
