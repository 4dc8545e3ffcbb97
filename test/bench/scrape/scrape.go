// Package scrape reads what Godwit's pods tell of themselves.
package scrape

import (
	"bytes"
	"context"
	"fmt"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/godwit-cni/godwit/test/lab"
)

// Component is a part of Godwit: where its pods have their metrics.
type Component struct {
	Name string
	Port int
}

// Controller is the component that writes the northbound database.
func Controller() Component { return Component{Name: "controller", Port: 9477} }

// Agent is the component on every node.
func Agent() Component { return Component{Name: "agent", Port: 9476} }

// Metrics are those of each of a component's pods, read through the API server.
func Metrics(ctx context.Context, api kubernetes.Interface, c Component) ([]map[string]*dto.MetricFamily, error) {
	pods, err := api.CoreV1().Pods(lab.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=" + c.Name})
	if err != nil {
		return nil, fmt.Errorf("list Godwit's pods: %w", err)
	}
	var all []map[string]*dto.MetricFamily
	for i := range pods.Items {
		p := &pods.Items[i]
		text, err := api.CoreV1().RESTClient().Get().Namespace(p.Namespace).Resource("pods").Name(fmt.Sprintf("%s:%d", p.Name, c.Port)).
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

// Transactions counts what the controllers have sent to the northbound database.
func Transactions(ctx context.Context, api kubernetes.Interface) (float64, error) {
	all, err := Metrics(ctx, api, Controller())
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
