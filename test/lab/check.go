package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/go-logr/logr"
	"github.com/ovn-kubernetes/libovsdb/client"
	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/sbdb"
	"github.com/godwit-cni/godwit/pkg/topology"
	"github.com/godwit-cni/godwit/pkg/vswitchdb"
	"github.com/godwit-cni/godwit/test/lab/check"
	"github.com/godwit-cni/godwit/test/lab/netns"
)

const factsTimeout = time.Minute

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
	g.Go(func() error { return l.apiFacts(ctx, &facts) })
	g.Go(func() error { return nbFacts(ctx, l.NB(), &facts) })
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
	for _, nic := range id.NICs {
		other := check.Identity{
			PodUID: id.PodUID, IPs: addrs(nic.IPs), Addresses: topology.Addresses(nic.MAC, nic.IPs), Version: f.Identity.Version, Row: ident.PodPort(p.Namespace, p.Name, nic.Interface),
		}
		if id.VMI != nil {
			other.Row = ident.VMPort(p.Namespace, id.VMI.Name, nic.Network)
		}
		f.Others = append(f.Others, other)
	}
	return f
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
