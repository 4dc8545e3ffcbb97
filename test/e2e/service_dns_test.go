package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/godwit-cni/godwit/test/lab/echo"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// containsName says whether one of the lines is, or ends or begins with, a name.
func containsName(lines, name string) bool {
	for line := range strings.Lines(lines) {
		if strings.Contains(line, name) {
			return true
		}
	}
	return false
}

// machinePlace is a machine's own network.
func machinePlace(t *testing.T, machine string) traffic.Place {
	t.Helper()
	path, err := cluster.Namespace(machine)
	if err != nil {
		t.Fatal(err)
	}
	return traffic.Place{Namespace: path}
}

// healthStatus asks a healthCheckNodePort from the outside machine.
func healthStatus(ctx context.Context, node netip.Addr, port int32) (int, error) {
	path, err := cluster.Namespace("outside")
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience(askTimeout))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+netip.AddrPortFrom(node, uint16(port)).String()+"/", nil)
	if err != nil {
		return 0, err
	}
	resp, err := (&http.Client{Transport: &http.Transport{DialContext: traffic.Place{Namespace: path}.Dial, DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

// speaksTLS asks the API server for its certificate, which has to be for the name and for the address.
func speaksTLS(ctx context.Context, from traffic.Place, at netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, patience(askTimeout))
	defer cancel()
	conn, err := from.Dial(ctx, "tcp", at.String())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	c := tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) // the lab's authority is nobody's; whose certificate it is is looked at below
	if err := c.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	cert := c.ConnectionState().PeerCertificates[0]
	return errors.Join(cert.VerifyHostname("kubernetes.default.svc"), cert.VerifyHostname(at.Addr().String()))
}

// dnsIn asks the cluster's DNS for a name, from a place, at one of its addresses.
func dnsIn(ctx context.Context, from traffic.Place, server netip.Addr, protocol, name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, patience(askTimeout))
	defer cancel()
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return from.Dial(ctx, protocol, netip.AddrPortFrom(server, 53).String())
	}}
	return r.LookupNetIP(ctx, "ip", name+".")
}

// Names resolve in pods, as the kubelet has told them where, and from nodes; a name leads to the Service, and a headless one's to its pods. CoreDNS itself reaches the
// API server by the address of the Service "kubernetes".
func TestServiceDNS(t *testing.T) {
	cluster.LogTo(slog.New(slog.NewTextHandler(t.Output(), nil)))
	defer cluster.LogTo(slog.New(slog.DiscardHandler))
	start := time.Now()
	if err := cluster.StartDNS(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("the cluster's DNS is ready after %s", time.Since(start).Round(100*time.Millisecond))
	g := newGoods(t)
	svc, headless := echoService(g.ns, "shop", podRole, 7), echoService(g.ns, "headless", podRole, 7)
	headless.Spec.ClusterIP = corev1.ClusterIPNone
	headless.Spec.Ports[0].Port, headless.Spec.Ports[1].Port = 7, 7
	open(t, svc, nil)
	open(t, headless, nil)
	want := map[string][]string{svc.Name: svc.Spec.ClusterIPs, headless.Name: texts(g.pod.IPs)}
	places := map[string]traffic.Place{"pod": podPlace(t, g.pod), "node1": machinePlace(t, "node1"), "node3": machinePlace(t, "node3")}
	eventually(t, settleTimeout, func(ctx context.Context) error {
		for who, place := range places {
			for _, server := range cluster.DNSIPs() {
				for _, protocol := range []string{"udp", "tcp"} {
					for name, addrs := range want {
						got, err := dnsIn(ctx, place, server, protocol, name+"."+g.ns+".svc.cluster.local")
						if err != nil {
							return fmt.Errorf("from %s over %s: %w", who, protocol, err)
						}
						if !sameAddresses(got, addrs) {
							return fmt.Errorf("from %s, %s is %v over %s, want %v", who, name, got, protocol, addrs)
						}
					}
				}
			}
		}
		return nil
	})
	// As programs do it: a short name, by /etc/resolv.conf.
	for _, c := range g.customers[:2] {
		for _, url := range []string{"tcp://shop:80/", "udp://shop:80/", "tcp://shop." + g.ns + ":80/", "udp://headless:7/"} {
			eventually(t, settleTimeout, func(ctx context.Context) error {
				answers, err := c.ask(ctx, []string{url + echo.AskName})
				if err != nil {
					return err
				}
				for _, a := range answers[url+echo.AskName] {
					if a.Backend != "a" {
						return fmt.Errorf("%s asks %s: %s, want pod a", c.name, url, a)
					}
				}
				return nil
			})
		}
	}
}

func texts(addrs []netip.Addr) []string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}

func sameAddresses(got []netip.Addr, want []string) bool {
	found := map[string]bool{}
	for _, a := range got {
		found[a.Unmap().String()] = true
	}
	for _, w := range want {
		if !found[w] {
			return false
		}
	}
	return len(found) == len(want)
}
