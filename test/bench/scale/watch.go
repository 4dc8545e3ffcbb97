package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/ovn-kubernetes/libovsdb/cache"
	ovsdbclient "github.com/ovn-kubernetes/libovsdb/client"
	"github.com/ovn-kubernetes/libovsdb/model"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	toolscache "k8s.io/client-go/tools/cache"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/sbdb"
	"github.com/godwit-cni/godwit/test/bench/central"
)

// seen is when the bench first saw what a pod needs.
type seen struct{ identity, row, binding time.Time }

// served is when the pod had both its identity and its row; zero while it lacks one.
func (s seen) served() time.Time {
	if s.identity.IsZero() || s.row.IsZero() {
		return time.Time{}
	}
	if s.identity.After(s.row) {
		return s.identity
	}
	return s.row
}

// watcher sees identities, northbound rows and southbound bindings appear. It asks for as little of each as it can: it shares the machine with what it watches.
type watcher struct {
	mu    sync.Mutex
	pods  map[ident.PortName]*seen
	count map[string]*tally // by namespace
	nodes int               // nodes with a row
	last  time.Time         // when the last binding appeared
}

type tally struct{ identities, rows, bindings, served int }

// watch starts to watch until closeAll is called, without which the API server would wait for the watch to end before it stops.
func watch(ctx context.Context, c *central.Cluster) (w *watcher, closeAll func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		if err != nil {
			cancel()
		}
	}()
	w = &watcher{pods: map[ident.PortName]*seen{}, count: map[string]*tally{}}
	var port central.PortRow
	north := central.Origin{Endpoint: c.NB, Database: "OVN_Northbound", Tables: map[string]model.Model{nbdb.LogicalSwitchPortTable: &port}}
	nb, err := central.Monitor(ctx, north, added(func(m model.Model) {
		w.saw(m.(*central.PortRow).Name, func(s *seen, t *tally, now time.Time) { s.row = now; t.rows++ })
	}), ovsdbclient.WithTable(&port, &port.Name))
	if err != nil {
		return nil, nil, err
	}
	var binding central.BindingRow
	south := central.Origin{Endpoint: c.SB, Database: "OVN_Southbound", Tables: map[string]model.Model{sbdb.PortBindingTable: &binding}}
	sb, err := central.Monitor(ctx, south, added(func(m model.Model) {
		w.saw(m.(*central.BindingRow).Port, func(s *seen, t *tally, now time.Time) { s.binding = now; t.bindings++; w.last = now })
	}), ovsdbclient.WithTable(&binding, &binding.Port))
	if err != nil {
		nb.Close()
		return nil, nil, err
	}
	closeAll = func() { cancel(); nb.Close(); sb.Close() }
	if err := w.watchPods(ctx, c); err != nil {
		closeAll()
		return nil, nil, err
	}
	return w, closeAll, nil
}

// added is told of rows that come.
func added(f func(model.Model)) cache.EventHandler {
	return &cache.EventHandlerFuncs{AddFunc: func(_ string, m model.Model) { f(m) }}
}

func (w *watcher) watchPods(ctx context.Context, c *central.Cluster) error {
	cl, err := metadata.NewForConfig(metadata.ConfigFor(c.REST))
	if err != nil {
		return err
	}
	inf := metadatainformer.NewFilteredMetadataInformer(cl, corev1.SchemeGroupVersion.WithResource("pods"), "", 0, toolscache.Indexers{}, nil).Informer()
	look := func(obj any) {
		m, ok := obj.(*v1.PartialObjectMetadata)
		if !ok || !strings.Contains(m.Annotations[v1alpha1.IdentityAnnotation], string(m.UID)) {
			return
		}
		w.saw(string(ident.PodPort(m.Namespace, m.Name, ident.DefaultNetwork)), func(s *seen, t *tally, now time.Time) {
			if s.identity.IsZero() {
				s.identity = now
				t.identities++
			}
		})
	}
	if _, err := inf.AddEventHandler(toolscache.ResourceEventHandlerFuncs{AddFunc: look, UpdateFunc: func(_, obj any) { look(obj) }}); err != nil {
		return err
	}
	go inf.Run(ctx.Done())
	if !toolscache.WaitForCacheSync(ctx.Done(), inf.HasSynced) {
		return fmt.Errorf("watch pods: %w", ctx.Err())
	}
	return nil
}

func (w *watcher) saw(port string, note func(*seen, *tally, time.Time)) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	ns, _, _, ok := ident.ParsePodPort(ident.PortName(port))
	if !ok {
		if strings.HasPrefix(port, "node/") {
			w.nodes++ // once as a row and once as a binding
		}
		return
	}
	s, t := w.pods[ident.PortName(port)], w.count[ns]
	if s == nil {
		s = &seen{}
		w.pods[ident.PortName(port)] = s
	}
	if t == nil {
		t = &tally{}
		w.count[ns] = t
	}
	before := s.served()
	note(s, t, now)
	if before.IsZero() && !s.served().IsZero() {
		t.served++
	}
}

// counts is what the pods have that are created all at once.
func (w *watcher) counts() tally {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t := w.count["bench"]; t != nil {
		return *t
	}
	return tally{}
}

// of is when one pod had what.
func (w *watcher) of(namespace, name string) seen {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.pods[ident.PodPort(namespace, name, ident.DefaultNetwork)]; s != nil {
		return *s
	}
	return seen{}
}

// lastServed is when the last of a namespace's pods was served.
func (w *watcher) lastServed(namespace string) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	var last time.Time
	for name, s := range w.pods {
		if ns, _, _, _ := ident.ParsePodPort(name); ns == namespace && s.served().After(last) {
			last = s.served()
		}
	}
	return last
}

// awaitNodes returns when n nodes have rows and bindings.
func (w *watcher) awaitNodes(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return central.Poll(ctx, fmt.Sprintf("%d nodes have rows and bindings", n), func() (bool, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.nodes >= 2*n, nil
	})
}
