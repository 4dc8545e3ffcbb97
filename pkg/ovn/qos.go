package ovn

import (
	"context"
	"fmt"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

var qosKind = kind[nbdb.QoS]{
	table: nbdb.QoSTable,
	owned: func(q *nbdb.QoS) []any {
		return []any{&q.Priority, &q.Direction, &q.Match, &q.Bandwidth, &q.ExternalIDs}
	},
	uuid:  func(q *nbdb.QoS) *string { return &q.UUID },
	ids:   func(q *nbdb.QoS) map[string]string { return q.ExternalIDs },
	label: func(q *nbdb.QoS) string { return q.Match },
}

// SetPodQoS makes want the QoS rows of a pod, at most one per direction, and deletes others that it has. All columns are written.
func SetPodQoS(ls ident.SwitchName, namespace, pod string, want []*nbdb.QoS) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		have, err := nb.podQoS(ctx, namespace, pod)
		if err != nil {
			return nil, err
		}
		byDirection := map[string]*nbdb.QoS{}
		for _, q := range have {
			byDirection[q.Direction] = q
		}
		var all []step
		for _, w := range want {
			s, err := qosKind.ensure(nb, byDirection[w.Direction], w, &parent{table: nbdb.LogicalSwitchTable, column: "qos_rules", name: string(ls)})
			if err != nil {
				return nil, err
			}
			all = append(all, s...)
			delete(byDirection, w.Direction)
		}
		for _, q := range byDirection {
			s, err := qosKind.remove(q, nbdb.LogicalSwitchTable, "qos_rules")
			if err != nil {
				return nil, err
			}
			all = append(all, s...)
		}
		return all, nil
	}
}

// podQoS is the live copy's QoS rows of a pod.
func (nb *NB) podQoS(ctx context.Context, namespace, pod string) ([]*nbdb.QoS, error) {
	var rows []*nbdb.QoS
	index := &nbdb.QoS{ExternalIDs: map[string]string{ident.KeyNamespace: namespace, ident.KeyName: pod}}
	if err := nb.ovsdb.Where(index).List(ctx, &rows); err != nil {
		return nil, fmt.Errorf("read the QoS rows of pod %s/%s: %w", namespace, pod, err)
	}
	return rows, nil
}
