package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"

	"github.com/godwit-cni/godwit/pkg/wire"
	"github.com/godwit-cni/godwit/test/lab/netns"
)

// asPlugin makes the test binary behave as the plugin: what a runtime starts is a process with an environment.
const asPlugin = "GODWIT_TEST_AS_PLUGIN"

func TestMain(m *testing.M) {
	if os.Getenv(asPlugin) == "" {
		os.Exit(m.Run())
	}
	plugin := &Plugin{Context: context.Background(), Stdout: os.Stdout}
	if e := skel.PluginMainFuncsWithError(plugin.Funcs(), wire.SupportedVersions(), "test"); e != nil {
		_ = e.Print()
		os.Exit(1)
	}
	os.Exit(0)
}

// fakeAgent answers as the test says and remembers what it was asked.
type fakeAgent struct {
	socket string
	got    wire.Request
	result *wire.Result
	err    error
}

func newFakeAgent(t *testing.T) *fakeAgent {
	t.Helper()
	dir, err := os.MkdirTemp("", "gwc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	a := &fakeAgent{socket: filepath.Join(dir, "cni.sock")}
	l, err := wire.Listen(t.Context(), a.socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := wire.NewServer(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil)), func(_ context.Context, req *wire.Request) (*wire.Result, error) {
		a.got = *req
		return a.result, a.err
	})
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return a
}

// call is one start of the plugin.
type call struct {
	command, netns string
	// conf is added to the configuration's usual fields.
	conf    map[string]any
	version string
	args    string
}

func (c call) run(t *testing.T, socket string) (stdout string, failure *types.Error) {
	t.Helper()
	conf := map[string]any{"cniVersion": c.version, "name": "godwit", "type": "godwit", "socket": socket}
	for k, v := range c.conf {
		conf[k] = v
	}
	stdin, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Env = append(os.Environ(), asPlugin+"=1", "CNI_COMMAND="+c.command, "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin",
		"CNI_NETNS="+c.netns, "CNI_ARGS="+c.args)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, t.Output()
	if err := cmd.Run(); err == nil {
		return out.String(), nil
	}
	failure = &types.Error{}
	if err := json.Unmarshal(out.Bytes(), failure); err != nil {
		t.Fatalf("%s failed without a CNI error: %q", c.command, out.String())
	}
	return "", failure
}

const podArgs = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=a;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=12-ab"

func podNetns(t *testing.T) string {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.Close)
	return ns.Path()
}

func podResult(netns string) *wire.Result {
	return &wire.Result{
		Host: wire.Link{Name: "gw1", MAC: "02:00:00:00:00:01"}, Container: wire.Link{Name: "eth0", MAC: "0a:67:0a:f4:00:05"}, Netns: netns, MTU: 1400,
		IPs: []wire.IP{
			{Address: netip.MustParsePrefix("10.244.0.5/16"), Gateway: netip.MustParseAddr("10.244.0.1")},
			{Address: netip.MustParsePrefix("fd00::5/64"), Gateway: netip.MustParseAddr("fd00::1")},
		},
	}
}

func TestAdd(t *testing.T) {
	agent, ns := newFakeAgent(t), podNetns(t)
	agent.result = podResult(ns)
	for _, version := range wire.SupportedVersions().SupportedVersions() {
		out, failure := call{command: "ADD", netns: ns, version: version, args: podArgs}.run(t, agent.socket)
		if failure != nil {
			t.Errorf("%s: %v", version, failure)
			continue
		}
		var got map[string]any
		if err := json.Unmarshal([]byte(out), &got); err != nil || got["cniVersion"] != version {
			t.Errorf("%s: result of version %v (%v)", version, got["cniVersion"], err)
		}
	}
	want := wire.Request{
		Version: wire.Version, Command: wire.Add, Conf: "godwit", Network: "default", ContainerID: "c1", Netns: ns, IfName: "eth0",
		Pod: wire.Pod{Namespace: "ns", Name: "a", UID: "12-ab"}, TimeoutMillis: agent.got.TimeoutMillis,
	}
	if diff := cmp.Diff(want, agent.got); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
	if agent.got.TimeoutMillis < 50_000 || agent.got.TimeoutMillis > 55_000 {
		t.Errorf("ADD waits %d ms, want about 55 s", agent.got.TimeoutMillis)
	}
}

const wantResult = `{
  "cniVersion": "1.1.0",
  "interfaces": [
    {"name": "gw1", "mac": "02:00:00:00:00:01", "mtu": 1400},
    {"name": "eth0", "mac": "0a:67:0a:f4:00:05", "mtu": 1400, "sandbox": "NETNS"}
  ],
  "ips": [
    {"interface": 1, "address": "10.244.0.5/16", "gateway": "10.244.0.1"},
    {"interface": 1, "address": "fd00::5/64", "gateway": "fd00::1"}
  ],
  "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.0.1"}, {"dst": "::/0", "gw": "fd00::1"}]
}`

func TestResult(t *testing.T) {
	agent, ns := newFakeAgent(t), podNetns(t)
	agent.result = podResult(ns)
	out, failure := call{command: "ADD", netns: ns, version: "1.1.0", args: podArgs}.run(t, agent.socket)
	if failure != nil {
		t.Fatal(failure)
	}
	var want, previous map[string]any
	if err := json.Unmarshal([]byte(out), &previous); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(strings.Replace(wantResult, "NETNS", ns, 1)), &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, previous); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
	// What the runtime keeps is what it shows at CHECK.
	if _, failure := (call{command: "CHECK", netns: ns, version: "1.1.0", args: podArgs, conf: map[string]any{"prevResult": previous}}).run(t, agent.socket); failure != nil {
		t.Fatal(failure)
	}
	wantPrevious := podResult(ns)
	wantPrevious.Host = wire.Link{}
	equal := cmp.Options{cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })}
	if diff := cmp.Diff(wantPrevious, agent.got.Previous, equal); diff != "" {
		t.Errorf("previous result that CHECK passes on (-want +got):\n%s", diff)
	}
}

func TestAddKeepsEarlierResult(t *testing.T) {
	agent, ns := newFakeAgent(t), podNetns(t)
	agent.result = podResult(ns)
	earlier := map[string]any{"cniVersion": "1.0.0", "interfaces": []any{map[string]any{"name": "dummy0"}}, "dns": map[string]any{"domain": "example.org"}}
	out, failure := call{command: "ADD", netns: ns, version: "1.0.0", args: podArgs, conf: map[string]any{"prevResult": earlier}}.run(t, agent.socket)
	if failure != nil {
		t.Fatal(failure)
	}
	var got current.Result
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range got.Interfaces {
		names = append(names, i.Name)
	}
	if diff := cmp.Diff([]string{"dummy0", "gw1", "eth0"}, names); diff != "" || *got.IPs[0].Interface != 2 || got.DNS.Domain != "example.org" {
		t.Errorf("interfaces (-want +got):\n%s\naddress of interface %d, domain %q", diff, *got.IPs[0].Interface, got.DNS.Domain)
	}
}

func TestDelNeedsNothing(t *testing.T) {
	agent := newFakeAgent(t)
	for _, netns := range []string{"", "/run/netns/gone"} {
		if _, failure := (call{command: "DEL", netns: netns, version: "1.1.0"}).run(t, agent.socket); failure != nil {
			t.Errorf("DEL with network namespace %q and no pod: %v", netns, failure)
		}
	}
	if agent.got.Command != wire.Del || agent.got.ContainerID != "c1" || agent.got.IfName != "eth0" {
		t.Errorf("request %+v", agent.got)
	}
}

func TestGC(t *testing.T) {
	agent := newFakeAgent(t)
	valid := []any{map[string]any{"containerID": "c1", "ifname": "eth0"}, map[string]any{"containerID": "c2", "ifname": "net1"}}
	if _, failure := (call{command: "GC", version: "1.1.0", conf: map[string]any{"cni.dev/valid-attachments": valid}}).run(t, agent.socket); failure != nil {
		t.Fatal(failure)
	}
	if diff := cmp.Diff([]wire.Attachment{{ContainerID: "c1", IfName: "eth0"}, {ContainerID: "c2", IfName: "net1"}}, agent.got.Valid); diff != "" {
		t.Errorf("attachments (-want +got):\n%s", diff)
	}
}

func TestFailures(t *testing.T) {
	agent, ns := newFakeAgent(t), podNetns(t)
	none := filepath.Join(t.TempDir(), "none.sock")
	for _, c := range []struct {
		name   string
		call   call
		socket string
		agent  error
		code   uint
		want   string
	}{
		{"ADD, no agent", call{command: "ADD", netns: ns, args: podArgs}, none, nil, types.ErrTryAgainLater, "godwit-agent is not running"},
		{"DEL, no agent", call{command: "DEL", netns: ns}, none, nil, types.ErrTryAgainLater, "godwit-agent is not running"},
		{"GC, no agent", call{command: "GC"}, none, nil, types.ErrTryAgainLater, "godwit-agent is not running"},
		{"STATUS, no agent", call{command: "STATUS"}, none, nil, 50, "godwit-agent is not running"},
		{"STATUS, not ready", call{command: "STATUS"}, agent.socket, types.NewError(50, "not now", "gateway"), 50, "not now"},
		{"ADD fails", call{command: "ADD", netns: ns, args: podArgs}, agent.socket, types.NewError(types.ErrInvalidNetNS, "bad", ""), types.ErrInvalidNetNS, "bad"},
		{"ADD without a pod", call{command: "ADD", netns: ns}, agent.socket, nil, types.ErrInvalidEnvironmentVariables, "K8S_POD_NAME"},
		{
			"ADD to an unknown network", call{command: "ADD", netns: ns, args: podArgs, conf: map[string]any{"network": "blue"}}, agent.socket, nil,
			types.ErrInvalidNetworkConfig, `network "blue" is not known`,
		},
		{"CHECK without prevResult", call{command: "CHECK", netns: ns, args: podArgs}, agent.socket, nil, types.ErrInvalidNetworkConfig, "without prevResult"},
		{"relative socket", call{command: "STATUS", conf: map[string]any{"socket": "x"}}, agent.socket, nil, types.ErrInvalidNetworkConfig, "not an absolute path"},
		{"ADD without an answer", call{command: "ADD", netns: ns, args: podArgs}, agent.socket, nil, types.ErrInternal, "without a result"},
	} {
		t.Run(c.name, func(t *testing.T) {
			agent.err, c.call.version = c.agent, "1.1.0"
			_, failure := c.call.run(t, c.socket)
			if failure == nil || failure.Code != c.code || !strings.Contains(failure.Msg+failure.Details, c.want) {
				t.Errorf("%v, want code %d and %q", failure, c.code, c.want)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	out, failure := call{command: "VERSION", version: "1.1.0"}.run(t, "/nonexistent")
	if failure != nil {
		t.Fatal(failure)
	}
	var got struct{ SupportedVersions []string }
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}, got.SupportedVersions); diff != "" {
		t.Errorf("versions (-want +got):\n%s", diff)
	}
}
