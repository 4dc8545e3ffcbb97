package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/ovn-kubernetes/libovsdb/client"
	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/sbdb"
	"github.com/godwit-cni/godwit/pkg/topology"
	"github.com/godwit-cni/godwit/pkg/vswitchdb"
	"github.com/godwit-cni/godwit/test/lab/check"
	"github.com/godwit-cni/godwit/test/lab/netns"
)

const factsTimeout = 20 * time.Second

// Check compares what API, NB, SB, Open vSwitch and the kernels say, and returns every difference. What is under way looks like a difference: wait for it,
// or ask again.
func (l *Lab) Check(ctx context.Context) ([]string, error) {
	s, err := readState(l.dir)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, factsTimeout)
	defer cancel()
	facts := check.Facts{Nodes: make([]check.Node, s.Nodes)}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { facts.Pods, err = l.podFacts(ctx); return err })
	g.Go(func() (err error) { facts.VMs, err = l.vmFacts(ctx); return err })
	g.Go(func() (err error) { facts.Ports, err = portFacts(ctx, l.NB()); return err })
	g.Go(func() (err error) { facts.Bindings, facts.Chassis, err = bindingFacts(ctx, l.SB()); return err })
	for i := range facts.Nodes {
		name := nodeName(i + 1)
		facts.Nodes[i].Name = name
		if m := s.Machines[name]; m != nil && m.Process.alive() {
			g.Go(func() (err error) { facts.Nodes[i], err = nodeFacts(ctx, name, m.Process); return err })
		}
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("collect what the parts of the lab say: %w", err)
	}
	return check.Compare(facts), nil
}

func (l *Lab) podFacts(ctx context.Context) ([]check.Pod, error) {
	client, err := l.Client()
	if err != nil {
		return nil, err
	}
	list, err := client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	var pods []check.Pod
	for i := range list.Items {
		if p := &list.Items[i]; !p.Spec.HostNetwork {
			pods = append(pods, podFact(p))
		}
	}
	return pods, nil
}

func podFact(p *corev1.Pod) check.Pod {
	f := check.Pod{
		Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Node: p.Spec.NodeName,
		Running:  p.Status.Phase == corev1.PodRunning && p.Status.PodIP != "" && p.DeletionTimestamp == nil,
		Finished: p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
	}
	for _, ip := range p.Status.PodIPs {
		if addr, err := netip.ParseAddr(ip.IP); err == nil {
			f.IPs = append(f.IPs, addr)
		}
	}
	text, ok := p.Annotations[v1alpha1.IdentityAnnotation]
	if !ok {
		return f
	}
	id, err := v1alpha1.ParseIdentity(text)
	if err != nil {
		f.IdentityError = err.Error()
		return f
	}
	f.Identity = &check.Identity{
		PodUID: id.PodUID, IPs: addrs(id.IPs), Addresses: topology.Addresses(id.MAC, id.IPs), Version: f.UID,
		Row: ident.PodPort(p.Namespace, p.Name, ident.DefaultNetwork),
	}
	if id.VMI != nil {
		f.Identity.Row, f.Identity.Version = ident.VMPort(p.Namespace, id.VMI.Name, ident.DefaultNetwork), id.VMI.UID
	}
	return f
}

func (l *Lab) vmFacts(ctx context.Context) ([]check.VM, error) {
	config, err := l.RESTConfig()
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	api, err := ctrlclient.New(config, ctrlclient.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	var ports v1alpha1.PortList
	if err := api.List(ctx, &ports); err != nil {
		return nil, fmt.Errorf("list Ports: %w", err)
	}
	var vms []check.VM
	for i := range ports.Items {
		p := &ports.Items[i]
		vms = append(vms, check.VM{
			Port: p.Namespace + "/" + p.Name, UID: string(p.UID), Row: ident.VMPort(p.Namespace, p.Spec.Target.Name, p.Spec.Target.Network),
			Ready: meta.IsStatusConditionTrue(p.Status.Conditions, "Ready"), Addresses: strings.Join(append([]string{p.Status.MAC}, p.Status.IPs...), " "),
		})
	}
	return vms, nil
}

// read connects to a database, reads the tables of the given models and calls f with what is there.
func read(ctx context.Context, endpoint string, db model.ClientDBModel, tables []client.MonitorOption, f func(client.Client) error) (err error) {
	quiet := logr.Discard()
	c, err := client.NewOVSDBClient(db, client.WithEndpoint(endpoint), client.WithLogger(&quiet))
	if err != nil {
		return fmt.Errorf("make a client of %s: %w", endpoint, err)
	}
	if err := c.Connect(ctx); err != nil {
		return fmt.Errorf("connect to %s: %w", endpoint, err)
	}
	defer c.Close()
	if _, err := c.Monitor(ctx, c.NewMonitor(tables...)); err != nil {
		return fmt.Errorf("read %s: %w", endpoint, err)
	}
	if err := f(c); err != nil {
		return fmt.Errorf("read %s: %w", endpoint, err)
	}
	return nil
}

func portFacts(ctx context.Context, endpoint string) ([]check.Port, error) {
	db, err := nbdb.FullDatabaseModel()
	if err != nil {
		return nil, fmt.Errorf("NB model: %w", err)
	}
	var ports []check.Port
	err = read(ctx, endpoint, db, []client.MonitorOption{client.WithTable(&nbdb.LogicalSwitchPort{})}, func(c client.Client) error {
		var rows []*nbdb.LogicalSwitchPort
		if err := c.List(ctx, &rows); err != nil {
			return err
		}
		for _, r := range rows {
			ports = append(ports, check.Port{
				Name: ident.PortName(r.Name), Type: r.Type, Addresses: r.Addresses, RequestedChassis: r.Options[ident.OptionRequestedChassis],
				ActivationStrategy: r.Options[ident.OptionActivationStrategy], UID: r.ExternalIDs[ident.KeyUID],
			})
		}
		return nil
	})
	return ports, err
}

func bindingFacts(ctx context.Context, endpoint string) (bindings []check.Binding, chassis []string, err error) {
	db, err := sbdb.FullDatabaseModel()
	if err != nil {
		return nil, nil, fmt.Errorf("SB model: %w", err)
	}
	tables := []client.MonitorOption{client.WithTable(&sbdb.PortBinding{}), client.WithTable(&sbdb.Chassis{})}
	err = read(ctx, endpoint, db, tables, func(c client.Client) error {
		var rows []*sbdb.PortBinding
		var hosts []*sbdb.Chassis
		if err := errors.Join(c.List(ctx, &rows), c.List(ctx, &hosts)); err != nil {
			return err
		}
		names := map[string]string{}
		for _, h := range hosts {
			names[h.UUID] = h.Name
			chassis = append(chassis, h.Name)
		}
		for _, r := range rows {
			b := check.Binding{Port: ident.PortName(r.LogicalPort), Type: r.Type, Up: r.Up != nil && *r.Up}
			if r.Chassis != nil {
				b.Chassis = names[*r.Chassis]
			}
			bindings = append(bindings, b)
		}
		return nil
	})
	slices.Sort(chassis)
	return bindings, chassis, err
}

// nodeFacts asks a node's Open vSwitch, through the node's own root directory, and its kernel.
func nodeFacts(ctx context.Context, name string, p process) (check.Node, error) {
	n := check.Node{Name: name, Runs: true}
	db, err := vswitchdb.FullDatabaseModel()
	if err != nil {
		return n, fmt.Errorf("Open_vSwitch model: %w", err)
	}
	endpoint := "unix:" + filepath.Join("/proc", fmt.Sprint(p.Pid), "root/run/openvswitch/db.sock")
	row := &vswitchdb.Interface{}
	tables := []client.MonitorOption{client.WithTable(row, &row.Name, &row.ExternalIDs, &row.Ofport, &row.Error)}
	err = read(ctx, endpoint, db, tables, func(c client.Client) error {
		var rows []*vswitchdb.Interface
		if err := c.List(ctx, &rows); err != nil {
			return err
		}
		for _, r := range rows {
			i := check.Interface{Name: r.Name, IfaceID: ident.PortName(r.ExternalIDs[ident.KeyIfaceID]), IfaceIDVer: r.ExternalIDs[ident.KeyIfaceIDVer]}
			if r.Ofport != nil {
				i.Ofport = *r.Ofport
			}
			if r.Error != nil {
				i.Error = *r.Error
			}
			n.Interfaces = append(n.Interfaces, i)
		}
		return nil
	})
	if err != nil {
		return n, fmt.Errorf("ask Open vSwitch of %s: %w", name, err)
	}
	err = netns.Do(netnsOf(p), func() error {
		links, err := netlink.LinkList()
		for _, link := range links {
			n.Links = append(n.Links, check.Link{Name: link.Attrs().Name, Veth: link.Type() == "veth"})
		}
		return err
	})
	if err != nil {
		return n, fmt.Errorf("list the links of %s: %w", name, err)
	}
	return n, nil
}
