package main

import (
	"context"
	"fmt"
	"sort"
	"strings"

	"github.com/godwit-cni/godwit/test/bench/scrape"
	"github.com/godwit-cni/godwit/test/bench/table"
)

// stages says where the agents' time went, over all that they attached.
func (b *bench) stages(ctx context.Context, _ *table.Report) error {
	all, err := scrape.Metrics(ctx, b.api, scrape.Agent())
	if err != nil {
		return err
	}
	sum, count := map[string]float64{}, map[string]float64{}
	for _, families := range all {
		for _, m := range families["godwit_agent_attach_stage_seconds"].GetMetric() {
			stage := m.GetLabel()[0].GetValue()
			sum[stage] += m.GetHistogram().GetSampleSum()
			count[stage] += float64(m.GetHistogram().GetSampleCount())
		}
	}
	var parts []string
	for stage := range sum {
		parts = append(parts, fmt.Sprintf("%s %.1f", stage, 1000*sum[stage]/count[stage]))
	}
	sort.Strings(parts)
	b.notes = append(b.notes, "where an ADD's time goes, mean of all on all nodes, ms: "+strings.Join(parts, ", "))
	return nil
}
