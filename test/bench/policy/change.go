package main

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/test/bench/central"
	"github.com/godwit-cni/godwit/test/bench/table"
)

// The labels of a pod that comes, and what it is changed to.
const (
	firstApp  = 3
	secondApp = 4
)

// kind is a kind of change of a pod.
type kind string

const (
	created    kind = "created"
	relabelled kind = "relabelled"
	deleted    kind = "deleted"
)

// sampled are the figures of the changes of one kind.
type sampled struct {
	// nb are the times from the request to the API server until the northbound database has all of it, sb those from then on until the southbound one has, in ms.
	nb, sb []float64
	// transactions and operations of the controller.
	transactions, operations, policies []float64
}

// changes measures pods that come, change their labels and go, one at a time.
func (b *bench) changes(ctx context.Context, out result) error {
	var inForce = b.all
	kinds := []kind{created, relabelled, deleted}
	if out[aclsMade] == 0 {
		inForce, kinds = nil, []kind{created, deleted} // labels mean nothing to anybody
	}
	where := map[kind]*places{deleted: nil}
	for k, app := range map[kind]int{created: firstApp, relabelled: secondApp} {
		p := placesOf(inForce, b.spaces, newPod(namespaceName(0), "sample", "", app))
		where[k] = &p
	}
	all := map[kind]*sampled{created: {}, relabelled: {}, deleted: {}}
	controller, err := b.leader.Usage()
	if err != nil {
		return err
	}
	northd, err := b.cl.Northd.Usage()
	if err != nil {
		return err
	}
	for i := range b.samples {
		pod := newPod(namespaceName(0), fmt.Sprintf("sample-%03d", i), central.NodeName(i%b.nodes), firstApp)
		for _, k := range kinds {
			if err := b.change(ctx, pod, change{k, where[k]}, all[k]); err != nil {
				return fmt.Errorf("pod %s is %s: %w", pod.Name, k, err)
			}
		}
	}
	n := float64(b.samples * len(kinds))
	controllerAfter, err := b.leader.Usage()
	if err != nil {
		return err
	}
	northdAfter, err := b.cl.Northd.Usage()
	if err != nil {
		return err
	}
	out[controllerCPU], out[northdCPU] = table.Millis(controllerAfter.CPU-controller.CPU)/n, table.Millis(northdAfter.CPU-northd.CPU)/n
	out[rss], out[peak] = controllerAfter.RSS, controllerAfter.Peak
	for _, k := range kinds {
		out.add(k, all[k])
	}
	return nil
}

// change is one of a pod, and where it has its places then.
type change struct {
	kind
	places *places
}

func (b *bench) change(ctx context.Context, pod *corev1.Pod, c change, s *sampled) error {
	if err := pause(ctx); err != nil {
		return err
	}
	before, start := b.ledger.Read(), time.Now()
	var err error
	switch c.kind {
	case created:
		err = b.cl.API.Create(ctx, pod)
	case relabelled:
		changed := pod.DeepCopy()
		changed.Labels["app"] = fmt.Sprint(secondApp)
		err = b.cl.API.Patch(ctx, changed, client.MergeFrom(pod))
	case deleted:
		err = b.cl.API.Delete(ctx, pod, client.GracePeriodSeconds(0))
	}
	if err != nil {
		return err
	}
	if c.kind == created {
		if err := b.awaitIdentity(ctx, pod); err != nil {
			return err
		}
	}
	id, err := v1alpha1.ParseIdentity(pod.Annotations[v1alpha1.IdentityAnnotation])
	if err != nil {
		return err
	}
	var ips []string
	for _, p := range id.IPs {
		ips = append(ips, p.Addr().String())
	}
	nb, sb := b.w.expect(string(ident.PodPort(pod.Namespace, pod.Name, ident.DefaultNetwork)), ips, c.places)
	var inNB, inSB time.Time
	if err := b.await(ctx, "both databases have it", func() (ok bool) {
		if inNB, ok = since(nb); !ok {
			return false
		}
		inSB, ok = since(sb)
		return ok
	}); err != nil {
		return err
	}
	if err := pause(ctx); err != nil { // whatever else the controller does
		return err
	}
	did := b.ledger.Read().Since(before)
	s.nb, s.sb = append(s.nb, table.Millis(inNB.Sub(start))), append(s.sb, table.Millis(inSB.Sub(inNB)))
	s.transactions = append(s.transactions, float64(did.Transactions))
	s.operations, s.policies = append(s.operations, float64(did.Operations)), append(s.policies, float64(did.About))
	return nil
}

// awaitIdentity reads the pod until it has its addresses.
func (b *bench) awaitIdentity(ctx context.Context, pod *corev1.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return central.Poll(ctx, "it has its identity", func() (bool, error) {
		err := b.cl.API.Get(ctx, client.ObjectKeyFromObject(pod), pod)
		return pod.Annotations[v1alpha1.IdentityAnnotation] != "", err
	})
}

func mean(samples []float64) float64 {
	sum := 0.0
	for _, s := range samples {
		sum += s
	}
	return sum / float64(len(samples))
}

func seconds(d time.Duration) float64 { return d.Seconds() }
