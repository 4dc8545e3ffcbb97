package grafana

func cluster() Dashboard {
	quantile := func(q, by, metric string) string {
		return `histogram_quantile(` + q + `, sum by (` + by + `) (rate(` + metric + `_bucket[$__rate_interval])))`
	}
	return Dashboard{
		UID: "godwit-cluster", Title: "Godwit cluster", Description: "Godwit itself: its parts, its databases, the addresses, the migrations of all VMs.",
		Panels: append([]Panel{
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
		}, ofOVN()...),
	}
}

// ofOVN are the panels of OVN's and Open vSwitch's daemons.
func ofOVN() []Panel {
	return []Panel{
		{
			Title: "ovn-controller's runs", Unit: "s", Width: 8, Description: "A whole run and the writing of flows, averages over the last hundred or so: how long a change takes to reach the node's flows.",
			Queries: []Query{
				{`max by (task) (godwit_ovn_task_seconds{daemon="ovn-controller",statistic="average"})`, "{{task}}, slowest node"},
				{`max(godwit_ovn_task_seconds{task="flow-generation",statistic="p95"})`, "95 % of whole runs, slowest node"},
			},
		},
		{
			Title: "Engine runs of ovn-controller", Unit: "ops", Width: 8, Description: "Recomputed is anew, over everything: the fewer the better.",
			Queries: []Query{{`sum by (node, run) (rate(godwit_ovn_controller_engine_runs_total[$__rate_interval]))`, "{{node}} {{run}}"}},
		},
		{
			Title: "Flows", Unit: "short", Width: 8, Description: "Of the node with the most: OpenFlow flows of br-int, flows of the datapath, and how many of those are allowed.",
			Queries: []Query{{`max(godwit_ovs_flows)`, "OpenFlow"}, {`max(godwit_ovs_datapath_flows)`, "datapath"}, {`min(godwit_ovs_datapath_flow_limit)`, "datapath's limit"}},
		},
		{
			Title: "Packets without a flow", Unit: "pps", Width: 8, Description: "Upcalls to ovs-vswitchd, and those of them that it had no time for.",
			Queries: []Query{{`sum by (result) (rate(godwit_ovs_datapath_packets_total{result!="hit"}[$__rate_interval]))`, "{{result}}"}},
		},
		{
			Title: "Daemons of the nodes", Unit: "short", Width: 8, Description: "How many answer, and how many ovn-controllers are connected to the southbound database.",
			Queries: []Query{{`sum by (daemon) (godwit_ovn_daemon_up{daemon=~"ovn-controller|ovs-vswitchd"})`, "{{daemon}}"}, {`sum(godwit_ovn_controller_connected)`, "connected"}},
		},
		{
			Title: "What ovs-vswitchd counts", Unit: "ops", Width: 8, Description: "Packets that were dropped, flows that did not fit, new configurations. What policies drop is drop_action_of_pipeline.",
			Queries: []Query{{`sum by (event) (rate(godwit_ovs_events_total{event!="xlate_actions"}[$__rate_interval]))`, "{{event}}"}},
		},
		{
			Title: "ovn-northd's runs", Unit: "s", Width: 8, Central: true, Description: "Of the one that works: a whole run and its parts, averages over the last hundred or so.",
			Queries: []Query{{`max by (task) (godwit_ovn_task_seconds{daemon="ovn-northd",statistic="average"})`, "{{task}}"}},
		},
		{
			Title: "Leaders and members", Unit: "short", Width: 8, Central: true, Description: "Each database has one leader, and all its members know it; one ovn-northd works.",
			Queries: []Query{
				{`sum by (database) (godwit_ovn_raft_leader)`, "{{database}} leaders"}, {`sum by (database) (godwit_ovn_raft_leader_known)`, "{{database}} members that know it"},
				{`max by (database) (godwit_ovn_raft_servers)`, "{{database}} members"}, {`max by (database) (godwit_ovn_raft_term)`, "{{database}} term"},
				{`sum(godwit_ovn_northd_active)`, "ovn-northds that work"},
			},
		},
		{
			Title: "Databases", Unit: "bytes", Width: 8, Central: true, Description: "Size of the file of the member with the largest.",
			Queries: []Query{{`max by (database) (godwit_ovn_database_file_bytes)`, "{{database}}"}},
		},
		{
			Title: "Log of the databases", Unit: "short", Width: 8, Central: true, Description: "Entries since the last snapshot, and by how many the slowest member is behind.",
			Queries: []Query{
				{`max by (database) (godwit_ovn_raft_log_entries)`, "{{database}}"}, {`max by (database) (godwit_ovn_raft_member_lag_entries)`, "{{database}} lag"},
				{`max by (database) (godwit_ovn_raft_uncommitted_entries)`, "{{database}} uncommitted"},
			},
		},
	}
}
