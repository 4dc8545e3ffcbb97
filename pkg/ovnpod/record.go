package ovnpod

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
)

// Names in the API.
const (
	// RecordName is the ConfigMap that remembers the clusters.
	RecordName = "godwit-ovn"
	// CentralName is the StatefulSet.
	CentralName = "ovn-central"
)

// apiTimeout bounds one request.
const apiTimeout = 10 * time.Second

// keptRemoved is how many members that were removed are remembered.
const keptRemoved = 32

// Record is what the API remembers of a database's cluster.
type Record struct {
	// Cluster is its identity; empty: there has never been one. Who has no file and finds one here never makes another cluster.
	Cluster string
	// Removed are the members that were removed, as removedName has them. A file of one of them is no member's any more.
	Removed []string
}

// shownDigits are how many digits of a member's identity cluster/status shows. Two members of one address that share them are one in 65,536; the younger would at
// worst join anew.
const shownDigits = 4

// removedName is how a member is remembered.
func removedName(id, address string) string { return id[:min(len(id), shownDigits)] + "@" + address }

// API is what of the API server is used.
type API struct {
	Client    kubernetes.Interface
	Namespace string
}

// Record reads what there is of a database.
func (a API) Record(ctx context.Context, kind string) (Record, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	cm, err := a.Client.CoreV1().ConfigMaps(a.Namespace).Get(ctx, RecordName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return Record{}, nil
	}
	if err != nil {
		return Record{}, fmt.Errorf("read ConfigMap %s/%s: %w", a.Namespace, RecordName, err)
	}
	return recordOf(cm, kind), nil
}

func recordOf(cm *corev1.ConfigMap, kind string) Record {
	return Record{Cluster: cm.Data[kind+".cluster"], Removed: strings.Fields(cm.Data[kind+".removed"])}
}

// Remember changes what there is of a database. Another cluster is put there by Claim alone.
func (a API) Remember(ctx context.Context, kind string, change func(*Record)) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	maps := a.Client.CoreV1().ConfigMaps(a.Namespace)
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		cm, err := maps.Get(ctx, RecordName, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			cm, err = maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: RecordName}}, metav1.CreateOptions{})
		}
		if apierrors.IsAlreadyExists(err) { // made by the other database's member at the same moment
			cm, err = maps.Get(ctx, RecordName, metav1.GetOptions{})
		}
		if err != nil {
			return err
		}
		old := recordOf(cm, kind)
		r := Record{Cluster: old.Cluster, Removed: slices.Clone(old.Removed)}
		change(&r)
		if r.Cluster == old.Cluster && slices.Equal(r.Removed, old.Removed) {
			return nil
		}
		if cm.Data == nil {
			cm.Data = map[string]string{}
		}
		r.Removed = r.Removed[max(0, len(r.Removed)-keptRemoved):]
		cm.Data[kind+".cluster"], cm.Data[kind+".removed"] = r.Cluster, strings.Join(r.Removed, " ")
		_, err = maps.Update(ctx, cm, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("write ConfigMap %s/%s: %w", a.Namespace, RecordName, err)
	}
	return nil
}

// ErrOtherCluster says that the API remembers another cluster than was expected.
var ErrOtherCluster = errors.New("there is another cluster of the database")

// Claim makes the API remember a cluster in the place of the one that it is expected to remember; empty: none. If it remembers a third, that stays, and the error is ErrOtherCluster:
// of two clusters that came to be at the same time one is the database's.
func (a API) Claim(ctx context.Context, kind, expected, cluster string) error {
	var found string
	if err := a.Remember(ctx, kind, func(r *Record) {
		if found = r.Cluster; found == expected {
			r.Cluster = cluster
		}
	}); err != nil {
		return err
	}
	if found != expected && found != cluster {
		return fmt.Errorf("%w: ConfigMap %s/%s has %s, and this one is %s", ErrOtherCluster, a.Namespace, RecordName, found, cluster)
	}
	return nil
}

// Replicas is how many members there should be.
func (a API) Replicas(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	s, err := a.Client.AppsV1().StatefulSets(a.Namespace).Get(ctx, CentralName, metav1.GetOptions{})
	if err != nil {
		return 0, fmt.Errorf("read StatefulSet %s/%s: %w", a.Namespace, CentralName, err)
	}
	if s.Spec.Replicas == nil {
		return 1, nil
	}
	return int(*s.Spec.Replicas), nil
}
