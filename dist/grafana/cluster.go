package grafana

func cluster() Dashboard {
	quantile := func(q, by, metric string) string {
		return `histogram_quantile(` + q + `, sum by (` + by + `) (rate(` + metric + `_bucket[$__rate_interval])))`
	}
	return Dashboard{
		UID: "godwit-cluster", Title: "Godwit cluster", Description: "Godwit itself: its parts, its databases, the addresses, the migrations of all VMs.",
		Panels: []Panel{
			{
				Title: "Agents, tunnels and chassis", Unit: "short", Width: 8, Description: "Each node has an agent that is ready, a Chassis, and a tunnel to every other node.",
				Queries: []Query{
					{`sum(godwit_agent_ready)`, "agents ready"}, {`max(godwit_chassis)`, "chassis"}, {`max(godwit_nodes_without_chassis)`, "nodes without a chassis"},
					{`min(godwit_agent_tunnels{state="made"})`, "tunnels of the node with the fewest"},
				},
			},
			{Title: "Databases reached", Unit: "short", Width: 8, Description: "1 if the controller reaches it.", Queries: []Query{{`max by (database) (godwit_ovn_connected)`, "{{database}}"}}},
			{
				Title: "Addresses in use", Unit: "percentunit", Width: 8, Description: "Of each Subnet, its scarcer family.",
				Queries: []Query{{`max by (subnet) (godwit_subnet_addresses{state="used"}) / sum by (subnet) (max by (subnet, state) (godwit_subnet_addresses))`, "{{subnet}}"}},
			},
			{Title: "Ports of VMs", Unit: "short", Width: 8, Description: "By phase.", Queries: []Query{{`max by (phase) (godwit_ports)`, "{{phase}}"}}},
			{
				Title: "What should not be", Unit: "short", Width: 8, Description: "All of these are 0 in a cluster that is well.",
				Queries: []Query{
					{`max(godwit_ports_without_chassis)`, "ports of running VMs that no node carries"}, {`max(godwit_stale_pins)`, "ports pinned to two nodes without a migration"},
					{`sum(godwit_agent_preflight_problems)`, "pre-flight problems"}, {`sum(increase(godwit_agent_service_failures_total[$__rate_interval]))`, "failed writes of Services"},
				},
			},
			{Title: "Migrations in progress", Unit: "short", Width: 8, Description: "By phase of their ports.", Queries: []Query{{`max by (phase) (godwit_migrations_in_progress)`, "{{phase}}"}}},
			{
				Title: "Migrations that ended", Unit: "short", Width: 8, Description: "By result and reason.",
				Queries: []Query{{`sum by (result, reason) (increase(godwit_migrations_total[$__rate_interval]))`, "{{result}} {{reason}}"}},
			},
			{
				Title: "Interruption", Unit: "s", Width: 8, Description: "Of all migrations: an upper bound.",
				Queries: []Query{{quantile("0.5", "le", "godwit_migration_interruption_seconds"), "median"}, {quantile("0.9", "le", "godwit_migration_interruption_seconds"), "90 %"}},
			},
			{
				Title: "Stages of migrations", Unit: "s", Width: 8, Description: "Medians. The transfer is QEMU's.",
				Queries: []Query{{quantile("0.5", "le, stage", "godwit_migration_stage_duration_seconds"), "{{stage}}"}, {quantile("0.5", "le", "godwit_migration_prepare_duration_seconds"), "prepare"}},
			},
			{
				Title: "CNI requests", Unit: "reqps", Width: 8, Description: "By command and outcome.",
				Queries: []Query{{`sum by (command, outcome) (rate(godwit_agent_cni_request_seconds_count[$__rate_interval]))`, "{{command}} {{outcome}}"}},
			},
			{
				Title: "Stages of ADD, 90 %", Unit: "s", Width: 8, Description: "Where a pod waits for its network.",
				Queries: []Query{{quantile("0.9", "le, stage", "godwit_agent_attach_stage_seconds"), "{{stage}}"}},
			},
			{
				Title: "Northbound transactions", Unit: "s", Width: 8, Description: "Until the reply.",
				Queries: []Query{{quantile("0.5", "le", "godwit_nb_transaction_duration_seconds"), "median"}, {quantile("0.99", "le", "godwit_nb_transaction_duration_seconds"), "99 %"}},
			},
		},
	}
}
