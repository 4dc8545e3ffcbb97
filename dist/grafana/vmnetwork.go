package grafana

// bandLag is the seconds by which the band of a migration looks ahead. A migration is told of at the first scrape after its start, with its exact time: a look at what was
// told this much later draws its edges where they were, not where the scrapes were. It must be longer than the time between two scrapes.
const bandLag = "60s"

// The values of the state timeline.
const (
	stateReserved = iota
	stateBound
	stateAttached
	stateMigrating
)

const ofVM = `{namespace=~"$namespace",vm=~"$vm"}`

// migrationBand has a value at every moment at which a VM's last migration was under way.
const migrationBand = `max by (namespace, vm) ((godwit_vm_migration_start_timestamp_seconds` + ofVM + ` offset -` + bandLag + ` <= time())` +
	` unless (godwit_vm_migration_end_timestamp_seconds` + ofVM + ` offset -` + bandLag + ` < time()))`

func vmNetwork() Dashboard {
	rate := func(direction, what string) string {
		return `sum by (namespace, vm, network) (rate(godwit_vm_nic_` + direction + `_` + what + `_total` + ofVM + `[$__rate_interval]))`
	}
	return Dashboard{
		UID: "godwit-vm-network", Title: "VM network",
		Description: "Where VMs are in the network, what they send and receive, and what their migrations did to them.",
		Variables: []Variable{
			{"namespace", "label_values(godwit_port_state, namespace)"},
			{"vm", `label_values(godwit_port_state{namespace=~"$namespace"}, vm)`},
			{"node", "label_values(godwit_port_state, node)"},
		},
		Panels: []Panel{
			{
				Title: "State", Width: 24, Description: "Each VM's port on the pod network. The orange band is its live migration, by the times in its PortMigration.",
				Queries: []Query{{Legend: "{{namespace}}/{{vm}}", Expr: `3 + 0 * ` + migrationBand + ` or max by (namespace, vm) (` +
					`2 * godwit_port_state{namespace=~"$namespace",vm=~"$vm",network="default",phase=~"Attached|Migrating"}` +
					` or godwit_port_state{namespace=~"$namespace",vm=~"$vm",network="default",phase="Bound"}` +
					` or 0 * godwit_port_state{namespace=~"$namespace",vm=~"$vm",network="default",phase="Reserved"})`}},
				States: []State{
					{stateReserved, "Reserved: it does not run", "#808080"}, {stateBound, "Bound: it starts", "#5794F2"}, {stateAttached, "Attached", "#56A64B"}, {stateMigrating, "Migrating", "#FF9830"},
				},
			},
			{
				Title: "VMs on each node", Unit: "short", Width: 12, Description: "Ports that a node's chassis carries.",
				Queries: []Query{{`count by (node) (godwit_port_state{namespace=~"$namespace",vm=~"$vm",node=~"$node",node!=""})`, "{{node}}"}},
			},
			{
				Title: "Interruption of the last migration", Unit: "s", Width: 12, Description: "Between the VM's last frame on the source and its first on the target: an upper bound.",
				Queries: []Query{{`max by (namespace, vm) (godwit_vm_migration_interruption_seconds` + ofVM + `)`, "{{namespace}}/{{vm}}"}},
			},
			{Title: "Sent", Unit: "bps", Width: 12, Description: "By VM and network.", Queries: []Query{{"8 * " + rate("transmit", "bytes"), "{{namespace}}/{{vm}} {{network}}"}}},
			{Title: "Received", Unit: "bps", Width: 12, Description: "By VM and network.", Queries: []Query{{"8 * " + rate("receive", "bytes"), "{{namespace}}/{{vm}} {{network}}"}}},
			{
				Title: "Packets dropped", Unit: "pps", Width: 12, Description: "By the links of the VM's node. What a policy drops is not among them.",
				Queries: []Query{{rate("transmit", "drops"), "{{namespace}}/{{vm}} {{network}} sent"}, {rate("receive", "drops"), "{{namespace}}/{{vm}} {{network}} received"}},
			},
			{
				Title: "Errors", Unit: "pps", Width: 12, Description: "Of the links of the VM's node.",
				Queries: []Query{{rate("transmit", "errors"), "{{namespace}}/{{vm}} {{network}} sent"}, {rate("receive", "errors"), "{{namespace}}/{{vm}} {{network}} received"}},
			},
		},
	}
}
