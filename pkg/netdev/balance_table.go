package netdev

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"sigs.k8s.io/knftables"
)

// passedOnBit of a packet's mark tells postrouting of the first packet of a connection that it needs another source. onHostBit tells who remembers that it came to an
// address of the host. They are those of kube-proxy and of kubelets of before, whose place this takes: other software leaves them alone.
const (
	passedOnBit = 0x4000
	passedOn    = "0x4000"
	onHostBit   = 0x8000
	onHost      = "0x8000"
)

// Where the chains stand among those of others: sources are judged before addresses are translated; what comes before and after -100, where hostPorts are, is this.
const (
	prioritySources  = knftables.BaseChainPriority("-110")
	priorityBalance  = knftables.BaseChainPriority("-105")
	priorityRemember = knftables.BaseChainPriority("-95")
	prioritySource   = knftables.BaseChainPriority("95")
)

// chainPrerouting is there whenever the table is.
const chainPrerouting = "prerouting"

// ipFamily is how nftables writes one.
type ipFamily struct {
	version, ip, addrType, loopback string
	member                          func(netip.Addr) bool
}

func ipFamilies() []ipFamily {
	return []ipFamily{{"4", "ip", "ipv4_addr", "127.0.0.0/8", netip.Addr.Is4}, {"6", "ip6", "ipv6_addr", "::1", netip.Addr.Is6}}
}

func familyOf(version string) ipFamily {
	for _, f := range ipFamilies() {
		if f.version == version {
			return f
		}
	}
	return ipFamily{}
}

// match is the expression that a packet's key in a class of maps is made of.
func (f ipFamily) match(class string) string {
	if class == classNodes {
		return "meta l4proto . th dport"
	}
	return f.ip + " daddr . meta l4proto . th dport"
}

// original is the same of the packet that opened the connection. nftables reads the port only after a match of the protocol.
func (f ipFamily) original(class string) string {
	if class == classNodes {
		return "meta l4proto . ct original proto-dst"
	}
	return "ct original " + f.ip + " daddr . meta l4proto . ct original proto-dst"
}

func (f ipFamily) keyType(class string) string {
	if class == classNodes {
		return "inet_proto . inet_service"
	}
	return f.addrType + " . inet_proto . inet_service"
}

// addTable adds the table as it is without any frontend: what was in it is emptied, but for affinities.
func (b *Balancer) addTable(tx *knftables.Transaction) {
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("Godwit: Services")})
	for _, f := range ipFamilies() {
		b.addMaps(tx, f)
	}
	b.addChain(tx, "refuse", "meta l4proto tcp reject with tcp reset", "reject")
	b.addBalance(tx)
	b.addPostrouting(tx)
	b.addFilters(tx)
	b.addRemember(tx)
}

func (b *Balancer) addMaps(tx *knftables.Transaction, f ipFamily) {
	add := func(m *knftables.Map) { tx.Add(m); tx.Flush(m) }
	for _, class := range []string{classVIPs, classNodes} {
		name := func(s string) string { return s + "-" + class + f.version }
		for _, side := range []string{"", outside} {
			for _, verdicts := range []string{mapPicks, mapRefused} {
				add(&knftables.Map{Name: name(side + verdicts), Type: f.keyType(class) + " : verdict"})
			}
			// The type of the values makes rules that read them match the protocol, so that each has a map of its own. 65536 stands for any number: only types count.
			for _, p := range protocols() {
				key := strings.ReplaceAll(f.match(class), "th dport", string(p)+" dport")
				add(&knftables.Map{Name: name(side+mapBackends) + "-" + string(p), TypeOf: fmt.Sprintf("%s . numgen random mod 65536 : %s daddr . %s dport", key, f.ip, p)})
			}
		}
		add(&knftables.Map{Name: name(mapSticky), Type: f.keyType(class) + " : verdict"})
	}
	for set, keys := range map[string]string{setRestricted: "", setPermitted: " . " + f.addrType} {
		s := &knftables.Set{Name: set + f.version, Type: f.keyType(classVIPs) + keys}
		if keys != "" {
			s.Flags = []knftables.SetFlag{knftables.IntervalFlag}
		}
		tx.Add(s)
		tx.Flush(s)
	}
	excluded := &knftables.Set{Name: "excluded" + f.version, Type: f.addrType, Flags: []knftables.SetFlag{knftables.IntervalFlag}}
	tx.Add(excluded)
	tx.Flush(excluded)
	tx.Add(&knftables.Element{Set: excluded.Name, Key: []string{f.loopback}})
	for _, addrs := range [][]netip.Addr{b.passage.Own, b.passage.Clients} {
		for _, a := range addrs {
			if f.member(a) {
				tx.Add(&knftables.Element{Set: excluded.Name, Key: []string{a.String()}})
			}
		}
	}
}

// addBalance is where destinations are translated.
func (b *Balancer) addBalance(tx *knftables.Transaction) {
	for _, side := range []string{outside, ""} {
		var rules []string
		for _, f := range ipFamilies() {
			rules = append(rules, f.match(classVIPs)+" vmap @"+side+mapPicks+"-"+classVIPs+f.version)
		}
		for _, f := range ipFamilies() {
			rules = append(rules, f.ip+" daddr != @excluded"+f.version+" fib daddr type local "+f.match(classNodes)+" vmap @"+side+mapPicks+"-"+classNodes+f.version)
		}
		b.addChain(tx, side+"balance", rules...)
	}
	b.addBase(tx, base{chainPrerouting, knftables.NATType, knftables.PreroutingHook, priorityBalance}, "iifname != "+b.gateway()+" jump outside-balance", "jump balance")
	b.addBase(tx, base{"output", knftables.NATType, knftables.OutputHook, priorityBalance}, "jump balance")
}

// addPostrouting is where sources are translated. What the host itself sends has the source of a route that is not the backend's; a client that is passed on has one
// that the backend would answer by another way.
func (b *Balancer) addPostrouting(tx *knftables.Transaction) {
	rules := []string{"meta mark and " + passedOn + " == 0 return", "meta mark set meta mark xor " + passedOn, "ct status and dnat == 0 return", "fib daddr type local return"}
	for _, f := range ipFamilies() {
		for _, to := range []struct {
			what  string
			addrs []netip.Addr
		}{{"fib saddr type local", b.passage.Own}, {"", b.passage.Clients}} {
			for _, a := range to.addrs {
				if f.member(a) {
					rules = append(rules, strings.Join(strings.Fields("oifname "+b.gateway()+" meta nfproto ipv"+f.version+" "+to.what+" snat "+f.ip+" to "+a.String()+" fully-random"), " "))
				}
			}
		}
	}
	rules = append(rules, "masquerade fully-random")
	b.addBase(tx, base{"postrouting", knftables.NATType, knftables.PostroutingHook, prioritySource}, rules...)
}

// addFilters is where connections end that have no backend, and those of clients that may not connect.
func (b *Balancer) addFilters(tx *knftables.Transaction) {
	for _, side := range []string{outside, ""} {
		var rules []string
		for _, f := range ipFamilies() {
			rules = append(rules, f.match(classVIPs)+" vmap @"+side+mapRefused+"-"+classVIPs+f.version,
				f.ip+" daddr != @excluded"+f.version+" fib daddr type local "+f.match(classNodes)+" vmap @"+side+mapRefused+"-"+classNodes+f.version)
		}
		b.addChain(tx, side+"refusals", rules...)
	}
	unbalanced := []string{"ct state != new return", "ct status and dnat != 0 return"}
	for _, hook := range []knftables.BaseChainHook{knftables.InputHook, knftables.ForwardHook} {
		b.addBase(tx, base{"filter-" + string(hook), knftables.FilterType, hook, knftables.FilterPriority}, append(unbalanced, "iifname != "+b.gateway()+" jump outside-refusals", "jump refusals")...)
	}
	b.addBase(tx, base{"filter-output", knftables.FilterType, knftables.OutputHook, knftables.FilterPriority}, append(unbalanced, "jump refusals")...)
	sources := []string{"ct state != new return"}
	for _, f := range ipFamilies() {
		sources = append(sources, fmt.Sprintf("%[1]s @%[2]s%[3]s %[1]s . %[4]s saddr != @%[5]s%[3]s drop", f.match(classVIPs), setRestricted, f.version, f.ip, setPermitted))
	}
	b.addBase(tx, base{"sources", knftables.FilterType, knftables.PreroutingHook, prioritySources}, sources...)
	b.addBase(tx, base{"sources-output", knftables.FilterType, knftables.OutputHook, prioritySources}, sources...)
}

// addRemember is where the backend that a client got is remembered. It is a chain of its own because nothing comes after a translation in the chain that makes it.
func (b *Balancer) addRemember(tx *knftables.Transaction) {
	for class, name := range map[string]string{classVIPs: "remember", classNodes: "remember-on-host"} {
		var rules []string
		for _, f := range ipFamilies() {
			for _, p := range protocols() {
				rules = append(rules, "meta nfproto ipv"+f.version+" meta l4proto "+string(p)+" "+f.original(class)+" vmap @"+mapSticky+"-"+class+f.version)
			}
		}
		if class == classNodes {
			rules = append(rules, "meta mark set meta mark xor "+onHost)
		}
		b.addChain(tx, name, rules...)
	}
	for _, hook := range []knftables.BaseChainHook{knftables.PreroutingHook, knftables.OutputHook} {
		b.addBase(tx, base{"remember-" + string(hook), knftables.FilterType, hook, priorityRemember},
			"ct state != new return", "ct status and dnat == 0 return", "meta mark and "+onHost+" != 0 goto remember-on-host", "goto remember")
	}
}

func (b *Balancer) gateway() string { return strconv.Quote(b.passage.Gateway) }

// base is where a chain begins by itself.
type base struct {
	name     string
	kind     knftables.BaseChainType
	hook     knftables.BaseChainHook
	priority knftables.BaseChainPriority
}

func (b *Balancer) addBase(tx *knftables.Transaction, c base, rules ...string) {
	tx.Add(&knftables.Chain{Name: c.name, Type: &c.kind, Hook: &c.hook, Priority: &c.priority})
	b.addRules(tx, c.name, rules)
}

func (b *Balancer) addChain(tx *knftables.Transaction, name string, rules ...string) {
	tx.Add(&knftables.Chain{Name: name})
	b.addRules(tx, name, rules)
}

func (b *Balancer) addRules(tx *knftables.Transaction, chain string, rules []string) {
	tx.Flush(&knftables.Chain{Name: chain})
	for _, r := range rules {
		tx.Add(&knftables.Rule{Chain: chain, Rule: r})
	}
}

// pickChain is the chain that picks one of n backends.
func (f Frontend) pickChain(side string, n int) string {
	return fmt.Sprintf("%spick-%s%s-%s-%d", side, f.class(), f.version(), f.Protocol, n)
}

// addChains adds the chains that a frontend leads to. Those that pick stay until the table is replaced: there are no more than numbers of backends.
func (b *Balancer) addChains(tx *knftables.Transaction, f Frontend, to Balance) {
	for side, c := range to.choices() {
		b.addPick(tx, f, side, len(c.Backends))
	}
	if to.Affinity > 0 {
		b.addSticky(tx, f, to)
	}
}

func (b *Balancer) addPick(tx *knftables.Transaction, f Frontend, side string, n int) {
	name := f.pickChain(side, n)
	if _, there := b.chains[name]; there || n == 0 {
		return
	}
	b.chains[name] = struct{}{}
	ip := familyOf(f.version())
	var rules []string
	if side != outside {
		rules = append(rules, "meta mark set meta mark or "+passedOn)
	}
	rules = append(rules, fmt.Sprintf("dnat %s to %s . numgen random mod %d map @%s", ip.ip, ip.match(f.class()), n, f.backendsMap(side)))
	b.addChain(tx, name, rules...)
}
