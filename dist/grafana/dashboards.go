// Package grafana makes Godwit's dashboards. They are made by code so that each query stands once, where a test can run it, and so that they are what Grafana's schema
// allows. `go test ./dist/grafana -update` writes the files beside this one, which are what a Grafana imports.
package grafana

import (
	"fmt"
	"strconv"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/statetimeline"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

// Query is what a panel shows.
type Query struct {
	// Expr is PromQL with Grafana's variables in it.
	Expr string
	// Legend names a series by its labels.
	Legend string
}

// Panel is a graph, or a band of states if it has States.
type Panel struct {
	Title, Description string
	// Unit is Grafana's identifier of one, such as s or bps.
	Unit    string
	Queries []Query
	// States are what the values of a band mean.
	States []State
	// Width is of 24.
	Width uint32
	// Central: it is of the databases' daemons, whose metrics there are where OVN runs as Godwit's pods.
	Central bool
}

// State is one of a band's values.
type State struct {
	Value       int
	Text, Color string
}

// Dashboard is a page of panels.
type Dashboard struct {
	// UID is its identity in a Grafana, and its file's name.
	UID, Title, Description string
	Variables               []Variable
	Panels                  []Panel
}

// Variable is a choice that the reader has, of a label's values.
type Variable struct{ Name, Query string }

// All are the dashboards.
func All() []Dashboard { return []Dashboard{vmNetwork(), cluster()} }

// datasource is the reader's choice.
func datasource() common.DataSourceRef {
	kind, uid := "prometheus", "$datasource"
	return common.DataSourceRef{Type: &kind, Uid: &uid}
}

// Build makes it Grafana's.
func (d Dashboard) Build() (dashboard.Dashboard, error) {
	b := dashboard.NewDashboardBuilder(d.Title).Uid(d.UID).Description(d.Description).Tags([]string{"godwit"}).Refresh("30s").Time("now-1h", "now").Timezone("browser").
		Tooltip(dashboard.DashboardCursorSyncCrosshair).
		WithVariable(dashboard.NewDatasourceVariableBuilder("datasource").Label("Prometheus").Type("prometheus"))
	for _, v := range d.Variables {
		query := v.Query
		b = b.WithVariable(dashboard.NewQueryVariableBuilder(v.Name).Label(v.Name).Query(dashboard.StringOrMap{String: &query}).Datasource(datasource()).
			Refresh(dashboard.VariableRefreshOnTimeRangeChanged).Multi(true).IncludeAll(true).AllValue(".*"))
	}
	for _, p := range d.Panels {
		b = b.WithPanel(p.builder())
	}
	built, err := b.Build()
	if err != nil {
		return built, fmt.Errorf("dashboard %s: %w", d.UID, err)
	}
	return built, nil
}

const panelHeight = 8

func (p Panel) builder() cog.Builder[dashboard.Panel] {
	if len(p.States) > 0 {
		b := statetimeline.NewPanelBuilder().Title(p.Title).Description(p.Description).Datasource(datasource()).Height(panelHeight).Span(p.Width).
			Mappings(mappings(p.States)).MergeValues(true).ShowValue(common.VisibilityModeNever)
		for i, q := range p.Queries {
			b = b.WithTarget(q.target(i))
		}
		return b
	}
	b := timeseries.NewPanelBuilder().Title(p.Title).Description(p.Description).Datasource(datasource()).Height(panelHeight).Span(p.Width).
		Unit(p.Unit).Min(0).FillOpacity(10).ShowPoints(common.VisibilityModeAuto)
	for i, q := range p.Queries {
		b = b.WithTarget(q.target(i))
	}
	return b
}

func (q Query) target(i int) *prometheus.DataqueryBuilder {
	return prometheus.NewDataqueryBuilder().Expr(q.Expr).LegendFormat(q.Legend).RefId(string(rune('A' + i))).Range()
}

func mappings(states []State) []dashboard.ValueMapping {
	options := map[string]dashboard.ValueMappingResult{}
	for i, s := range states {
		index := int32(i) //nolint:gosec // a handful
		options[strconv.Itoa(s.Value)] = dashboard.ValueMappingResult{Text: &s.Text, Color: &s.Color, Index: &index}
	}
	return []dashboard.ValueMapping{{ValueMap: &dashboard.ValueMap{Type: dashboard.MappingTypeValueToText, Options: options}}}
}
