package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/test/bench/central"
	"github.com/godwit-cni/godwit/test/bench/table"
)

const (
	// patience bounds every wait for many things, and for one thing that northd does while there are many.
	patience = 15 * time.Minute
	// rest is how long nothing is done before and after what is measured.
	rest = 300 * time.Millisecond
)

// bench is what the parts of the measurement share.
type bench struct {
	config
	cl *central.Cluster
	// counted is the northbound endpoint of the controllers, behind the ledger.
	counted string
	ledger  *central.Ledger
	w       *watcher
	leader  *central.Replica

	all    []*networkingv1.NetworkPolicy
	spaces map[string]map[string]string
}

func measure(ctx context.Context, c config) (err error) {
	dir, err := os.MkdirTemp("", "gwp")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &bench{config: c, ledger: &central.Ledger{About: isPolicyTable}, counted: "unix:" + filepath.Join(dir, "counted.sock"), all: newPolicies(c.policies), spaces: namespaces(c.policies)}
	programs, err := central.Prepare(ctx, central.Config{Controller: c.controller, Logs: c.keep, Dir: dir, Log: c.log})
	if err != nil {
		return err
	}
	b.cl, err = programs.Start(ctx)
	defer b.cl.Stop()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.ledger.Serve(ctx, b.counted, b.cl.NB) })
	r := &report{config: c}
	g.Go(func() error {
		defer cancel()
		var closeAll func()
		var err error
		if b.w, closeAll, err = watch(ctx, b.cl.NB, b.cl.SB); err != nil {
			return err
		}
		defer closeAll()
		err = b.run(ctx, r)
		b.cl.Stop() // the controllers first, then what they are connected to
		return err
	})
	err = g.Wait()
	t := r.table()
	if err != nil {
		return errors.Join(err, t.Print(os.Stdout)) // what there is
	}
	return errors.Join(t.Print(os.Stdout), t.Save("policy"))
}

// run measures with a tenth of the pods, without policies and with them, and then with all pods.
func (b *bench) run(ctx context.Context, r *report) error {
	if err := b.begin(ctx); err != nil {
		return err
	}
	few := b.pods / 10
	for _, stage := range []struct {
		name string
		do   func(context.Context, result) error
	}{
		{fmt.Sprintf("%d pods, no policy", few), func(ctx context.Context, out result) error { return b.addPods(ctx, out, 0, few) }},
		{fmt.Sprintf("%d pods", few), b.addPolicies},
		{fmt.Sprintf("%d pods", b.pods), func(ctx context.Context, out result) error { return b.addPods(ctx, out, few, b.pods) }},
	} {
		out := r.column(stage.name)
		b.log.Info("preparing", "stage", stage.name, "load", table.LoadAverage())
		if err := stage.do(ctx, out); err != nil {
			return fmt.Errorf("%s: %w", stage.name, err)
		}
		b.log.Info("pods that come, change their labels and go", "stage", stage.name)
		if err := b.changes(ctx, out); err != nil {
			return fmt.Errorf("%s: %w", stage.name, err)
		}
		if out[aclsMade] == 0 {
			continue
		}
		b.log.Info("new leaders", "stage", stage.name)
		if err := b.newLeaders(ctx, out); err != nil {
			return fmt.Errorf("%s: %w", stage.name, err)
		}
	}
	return nil
}

// begin starts a controller, and adds nodes and namespaces.
func (b *bench) begin(ctx context.Context) error {
	var err error
	if b.leader, err = b.cl.Controller(ctx, "first", b.counted); err != nil {
		return err
	}
	for name, labels := range b.spaces {
		if err := b.cl.API.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}); err != nil {
			return err
		}
	}
	if err := b.cl.AddNodes(ctx, b.nodes); err != nil {
		return err
	}
	if err := b.leader.AwaitReady(ctx); err != nil {
		return err
	}
	// Four ACLs are always there; a node has one from the moment on that it has its address on the join network.
	return b.await(ctx, fmt.Sprintf("%d nodes have rows", b.nodes), func() bool { return b.w.nb.countOfACLs() == countACLs(nil, b.nodes) })
}

// addPods makes the pods that are numbered so, and waits until northd has told the southbound database of all of them.
func (b *bench) addPods(ctx context.Context, out result, from, to int) error {
	want, before := b.w.nb.countOfPods()+to-from, b.ledger.Read()
	start := time.Now()
	err := central.Each(ctx, central.Range{From: from, To: to}, func(ctx context.Context, i int) error { return b.cl.API.Create(ctx, b.crowdPod(i)) })
	if err != nil {
		return err
	}
	if err := b.await(ctx, fmt.Sprintf("%d pods have rows", want), func() bool { return b.w.nb.countOfPods() == want }); err != nil {
		return err
	}
	out[podsServed] = seconds(time.Since(start))
	if err := b.northd(ctx, out); err != nil {
		return err
	}
	did := b.ledger.Read().Since(before)
	out[podsTransactions] = 100 * float64(did.Transactions) / float64(to-from)
	out[podsOperations] = float64(did.About) / float64(to-from)
	if b.w.nb.countOfACLs() > countACLs(nil, b.nodes) {
		out[aclsMade] = float64(b.w.nb.countOfACLs())
	}
	return nil
}

// addPolicies makes all policies and waits until they are in force, as far as the databases are concerned.
func (b *bench) addPolicies(ctx context.Context, out result) error {
	want, before := countACLs(b.all, b.nodes), b.ledger.Read()
	start := time.Now()
	err := central.Each(ctx, central.Range{To: len(b.all)}, func(ctx context.Context, i int) error { return b.cl.API.Create(ctx, b.all[i].DeepCopy()) })
	if err != nil {
		return err
	}
	if err := b.await(ctx, fmt.Sprintf("there are %d ACLs", want), func() bool { return b.w.nb.countOfACLs() == want }); err != nil {
		return fmt.Errorf("%w: there are %d", err, b.w.nb.countOfACLs())
	}
	out[policiesWritten], out[aclsMade] = seconds(time.Since(start)), float64(want)
	did := b.ledger.Read().Since(before)
	out[policiesTransactions] = 100 * float64(did.Transactions) / float64(len(b.all))
	return b.northd(ctx, out)
}

// northd waits until northd has told the southbound database of everything.
func (b *bench) northd(ctx context.Context, out result) error {
	start := time.Now()
	_, err := b.cl.Command(ctx, "ovn-nbctl", "--db="+b.cl.NB, "--wait=sb", fmt.Sprintf("--timeout=%d", int(patience.Seconds())), "sync")
	out[northdBehind] = seconds(time.Since(start))
	return err
}

// await waits for something that the controller and northd do. A controller whose lease runs out ends, as it should; here nobody starts it again.
func (b *bench) await(ctx context.Context, what string, done func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return central.Poll(ctx, what, func() (bool, error) {
		if done() {
			return true, nil
		}
		if err := b.leader.Running(); err != nil {
			return false, fmt.Errorf("%w (--keep keeps the logs). On a machine that is too busy its lease runs out", err)
		}
		return false, nil
	})
}

// pause lets what is under way come to rest.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(rest):
		return nil
	}
}
