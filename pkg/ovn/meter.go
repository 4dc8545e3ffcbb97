package ovn

import (
	"context"

	"github.com/godwit-cni/godwit/pkg/nbdb"
)

var meterKind = kind[nbdb.Meter]{
	table: nbdb.MeterTable,
	owned: func(m *nbdb.Meter) []any { return []any{&m.Unit, &m.Fair, &m.ExternalIDs} },
	uuid:  func(m *nbdb.Meter) *string { return &m.UUID },
	ids:   func(m *nbdb.Meter) map[string]string { return m.ExternalIDs },
	label: func(m *nbdb.Meter) string { return m.Name },
}

var bandKind = kind[nbdb.MeterBand]{
	table: nbdb.MeterBandTable,
	owned: func(b *nbdb.MeterBand) []any { return []any{&b.Action, &b.Rate, &b.BurstSize, &b.ExternalIDs} },
	uuid:  func(b *nbdb.MeterBand) *string { return &b.UUID },
	ids:   func(b *nbdb.MeterBand) map[string]string { return b.ExternalIDs },
	label: func(b *nbdb.MeterBand) string { return b.Action },
}

// EnsureMeter makes the Meter want.Name with one band. Written: unit, fair, and the band's action, rate and burst_size.
func EnsureMeter(want *nbdb.Meter, band *nbdb.MeterBand) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		have, err := get(ctx, nb, &nbdb.Meter{Name: want.Name})
		if err != nil {
			return nil, err
		}
		if have == nil {
			steps, err := bandKind.create(nb, band, nil)
			if err != nil {
				return nil, err
			}
			row := *want
			row.Bands = []string{nb.namedUUID()}
			meter, err := meterKind.create(nb, &row, nil)
			return append(steps, meter...), err
		}
		steps, err := meterKind.ensure(nb, have, want, nil)
		if err != nil || len(have.Bands) == 0 {
			return steps, err
		}
		has, err := get(ctx, nb, &nbdb.MeterBand{UUID: have.Bands[0]})
		if err != nil || has == nil {
			return steps, err
		}
		more, err := bandKind.ensure(nb, has, band, nil)
		return append(steps, more...), err
	}
}
