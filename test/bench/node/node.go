// Package node measures, on a node of the lab, how long attaching a container takes: by a CNI plugin, and by OVN alone.
package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/ovs"
	"github.com/godwit-cni/godwit/pkg/topology"
)

// Job is what is to be measured, sent as JSON.
type Job struct {
	// Plugin is the path of a CNI plugin. Empty: OVN alone, a northbound row and an interface until ovn-installed.
	Plugin string `json:"plugin,omitempty"`
	// Conf is the plugin's configuration, for its standard input.
	Conf string `json:"conf,omitempty"`
	// Args are CNI_ARGS, one for each container.
	Args []string `json:"args,omitempty"`
	// Count is the number of containers, if there are no Args.
	Count int `json:"count,omitempty"`
	// AtOnce is how many are attached at the same time.
	AtOnce int `json:"atOnce"`

	// NB, Node, Switch and Addresses are for OVN alone: the northbound database, this node, and what its ports get.
	NB        string           `json:"nb,omitempty"`
	Node      string           `json:"node,omitempty"`
	Switch    ident.SwitchName `json:"switch,omitempty"`
	Addresses netip.Addr       `json:"addresses,omitempty"`
}

// Result is the time that each attachment took, in milliseconds, and that of all together.
type Result struct {
	Each []float64 `json:"each"`
	All  float64   `json:"all"`
}

// attach is one kind of attachment.
type attach interface {
	// add attaches container i, whose namespace is ns; what it does is what is timed.
	add(ctx context.Context, i int, ns string) error
	del(ctx context.Context, i int, ns string) error
}

// Run reads a Job, carries it out and writes the Result. Whatever it made is removed again.
func Run(ctx context.Context, in io.Reader, out io.Writer) error {
	var job Job
	if err := json.NewDecoder(in).Decode(&job); err != nil {
		return fmt.Errorf("read the job: %w", err)
	}
	n := max(len(job.Args), job.Count)
	var a attach = plugin{job}
	if job.Plugin == "" {
		o, err := newAlone(ctx, job)
		if err != nil {
			return err
		}
		defer o.close()
		a = o
	}
	res, err := measure(ctx, a, n, job.AtOnce)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(res)
}

func measure(ctx context.Context, a attach, n, atOnce int) (res Result, err error) {
	spaces := make([]string, n)
	defer func() {
		for i, ns := range spaces {
			if ns != "" {
				err = errors.Join(err, a.del(ctx, i, ns), netns.DeleteNamed(filepath.Base(ns)))
			}
		}
	}()
	for i := range spaces {
		if spaces[i], err = namespace(fmt.Sprintf("bench-%d", i)); err != nil {
			return res, err
		}
	}
	res.Each = make([]float64, n)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	start := time.Now()
	for i, ns := range spaces {
		g.Go(func() error {
			t := time.Now()
			err := a.add(gctx, i, ns)
			res.Each[i] = milliseconds(time.Since(t))
			return err
		})
	}
	err = g.Wait()
	res.All = milliseconds(time.Since(start))
	return res, err
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// namespace makes a named one, where container runtimes have theirs.
func namespace(name string) (string, error) {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends in the new namespace
		h, err := netns.NewNamed(name)
		if err == nil {
			err = h.Close()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return "", fmt.Errorf("make network namespace %s: %w", name, err)
	}
	return "/run/netns/" + name, nil
}

// plugin is a CNI plugin, run as a container runtime runs it.
type plugin struct{ job Job }

func (p plugin) add(ctx context.Context, i int, ns string) error { return p.run(ctx, "ADD", i, ns) }
func (p plugin) del(ctx context.Context, i int, ns string) error { return p.run(ctx, "DEL", i, ns) }

func (p plugin) run(ctx context.Context, command string, i int, ns string) error {
	cmd := exec.CommandContext(ctx, p.job.Plugin)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin", "CNI_COMMAND=" + command, fmt.Sprintf("CNI_CONTAINERID=bench%d", i), "CNI_NETNS=" + ns, "CNI_IFNAME=eth0",
		"CNI_PATH=" + filepath.Dir(p.job.Plugin)}
	if len(p.job.Args) > 0 {
		cmd.Env = append(cmd.Env, "CNI_ARGS="+p.job.Args[i])
	}
	cmd.Stdin = strings.NewReader(p.job.Conf)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", filepath.Base(p.job.Plugin), command, err, out.String())
	}
	return nil
}

// alone is OVN without Kubernetes and without a plugin: the veths are there before the clock starts.
type alone struct {
	job  Job
	nb   *ovn.NB
	db   *ovs.Client
	stop func()
}

func newAlone(ctx context.Context, job Job) (*alone, error) {
	log := slog.New(slog.DiscardHandler)
	nb, err := ovn.Connect(ctx, ovn.Config{Endpoints: []string{job.NB}, Registerer: prometheus.NewRegistry(), Logger: log})
	if err != nil {
		return nil, err
	}
	db, err := ovs.Connect(ctx, ovs.Config{Endpoint: ovs.DefaultEndpoint, Logger: log})
	if err != nil {
		nb.Close()
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- nb.Run(ctx) }()
	a := &alone{job: job, nb: nb, db: db, stop: func() { cancel(); <-done }}
	for i := range job.Count {
		if err := a.link(i); err != nil {
			a.close()
			return nil, err
		}
	}
	return a, nil
}

func (a *alone) close() {
	for i := range a.job.Count {
		_ = netdev.Host{}.DeleteLink(a.name(i)) // what is left of it is no part of the result
	}
	a.stop()
	a.db.Close()
	a.nb.Close()
}

func (a *alone) name(i int) string { return netdev.HostName(fmt.Sprintf("bench-alone-%d", i), "eth0") }

func (a *alone) identity(i int) v1alpha1.Identity {
	ip := a.job.Addresses
	for range i {
		ip = ip.Next()
	}
	return v1alpha1.Identity{PodUID: fmt.Sprint("bench-", i), IPs: []netip.Prefix{netip.PrefixFrom(ip, ip.BitLen())}, MAC: v1alpha1.MAC(ident.MAC(ip))}
}

// link makes a veth for the port; both ends stay on the host.
func (a *alone) link(i int) error {
	_, err := netdev.Host{}.CreateVeth(netdev.Veth{
		Host: a.name(i), Netns: "/proc/self/ns/net", Name: fmt.Sprintf("bench%d", i), MAC: net.HardwareAddr(a.identity(i).MAC), MTU: 1400, NoOffload: true,
	})
	return err
}

func (a *alone) port(i int) *nbdb.LogicalSwitchPort {
	return topology.Pod("bench", fmt.Sprint("alone", i), ident.DefaultNetwork, ident.ChassisName(a.job.Node), a.identity(i))
}

func (a *alone) add(ctx context.Context, i int, _ string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	lsp := a.port(i)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.nb.Apply(gctx, ovn.EnsurePort(a.job.Switch, lsp)) })
	g.Go(func() error {
		return a.db.EnsurePort(gctx, ovs.Port{
			Name: a.name(i), ID: ident.PortName(lsp.Name), UID: a.identity(i).PodUID, MAC: a.identity(i).MAC.String(),
			Owner: ovs.Owner{Container: fmt.Sprint("bench-alone-", i), IfName: "eth0"},
		})
	})
	if err := g.Wait(); err != nil {
		return err
	}
	return a.db.WaitInstalled(ctx, a.name(i))
}

func (a *alone) del(ctx context.Context, i int, _ string) error {
	return errors.Join(a.db.DeletePorts(ctx, a.name(i)), a.nb.Apply(ctx, ovn.DeletePort(ident.PortName(a.port(i).Name))))
}
