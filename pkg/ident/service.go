package ident

import (
	"crypto/sha256"
	"encoding/base32"
	"net/netip"
	"strings"
)

// ServiceGroup is the NB Load_Balancer_Group of a network: its load balancers, which every switch of a Subnet names.
func ServiceGroup(network string) string { return "services/" + network }

// LoadBalancer is the load balancer of a Service for a protocol, in lower case.
func LoadBalancer(namespace, service, protocol string) LoadBalancerName {
	return LoadBalancerName("service/" + namespace + "/" + service + "/" + protocol)
}

// LocalLoadBalancer is the one of a Service whose connections stay on the client's node. OVN wants one for each family, ip4 or ip6.
func LocalLoadBalancer(namespace, service, protocol, family string) LoadBalancerName {
	return LoadBalancer(namespace, service, protocol) + LoadBalancerName("/local/"+family)
}

// TemplateVar is the variable of a chassis (NB Chassis_Template_Var) that stands for something of a load balancer; what is a word for it. OVN takes letters, digits and
// underlines, so the name is a hash.
func TemplateVar(lb LoadBalancerName, what string) string {
	sum := sha256.Sum256([]byte(string(lb) + " " + what))
	return templatePrefix + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:16]))
}

const templatePrefix = "godwit_"

// IsTemplateVar says whether a variable of a chassis is one that TemplateVar names.
func IsTemplateVar(name string) bool { return strings.HasPrefix(name, templatePrefix) }

// LocalServices is the NB Address_Set of a family, ip4 or ip6, with the addresses that only a load balancer on the client's node serves.
func LocalServices(family string) string { return "godwit_services_local_" + family }

// HairpinSources are the addresses from which a pod sees a connection to a Service that came back to itself: link-local IPv4, and IPv6 of a prefix that is nobody else's.
// They are the same everywhere, so that a NetworkPolicy's exemption can name them.
func HairpinSources() [2]netip.Addr {
	return [2]netip.Addr{netip.AddrFrom4([4]byte{169, 254, 71, 87}), netip.MustParseAddr("fd67:6f64:7769:7400::1")}
}
