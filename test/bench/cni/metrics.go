package main

import (
	"bytes"
	"context"
	"fmt"
	"sort"
	"strings"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/test/bench/table"
)

// scrape reads the metrics of Godwit's pods of a component, through the API server.
func (b *bench) scrape(ctx context.Context, component string, port int) ([]map[string]*dto.MetricFamily, error) {
	pods, err := b.api.CoreV1().Pods("godwit-system").List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=" + component})
	if err != nil {
		return nil, err
	}
	var all []map[string]*dto.MetricFamily
	for _, p := range pods.Items {
		text, err := b.api.CoreV1().RESTClient().Get().Namespace(p.Namespace).Resource("pods").Name(fmt.Sprintf("%s:%d", p.Name, port)).
			SubResource("proxy").Suffix("metrics").DoRaw(ctx)
		if err != nil {
			return nil, fmt.Errorf("metrics of %s: %w", p.Name, err)
		}
		parser := expfmt.NewTextParser(model.UTF8Validation)
		families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
		if err != nil {
			return nil, fmt.Errorf("metrics of %s: %w", p.Name, err)
		}
		all = append(all, families)
	}
	return all, nil
}

// transactions counts what the controllers have sent to the northbound database.
func (b *bench) transactions(ctx context.Context) (float64, error) {
	all, err := b.scrape(ctx, "controller", 9477)
	if err != nil {
		return 0, err
	}
	var n float64
	for _, families := range all {
		for _, m := range families["godwit_nb_transaction_duration_seconds"].GetMetric() {
			n += float64(m.GetHistogram().GetSampleCount())
		}
	}
	return n, nil
}

// stages says where the agents' time went, over all that they attached.
func (b *bench) stages(ctx context.Context, _ *table.Report) error {
	all, err := b.scrape(ctx, "agent", 9476)
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
