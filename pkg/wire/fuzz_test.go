package wire

import (
	"strings"
	"testing"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// FuzzParseArgs: whatever is accepted makes a port name that says the same pod when it is parsed back.
func FuzzParseArgs(f *testing.F) {
	for _, seed := range []string{
		"K8S_POD_NAMESPACE=ns;K8S_POD_NAME=a;K8S_POD_UID=1", "K8S_POD_NAMESPACE=n/s;K8S_POD_NAME=a", "=;==;K8S_POD_NAME=", "IgnoreUnknown=true;;",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, args string) {
		pod, err := ParseArgs(args)
		if err != nil {
			if pod != (Pod{}) {
				t.Errorf("a pod %v with an error", pod)
			}
			return
		}
		ns, name, network, ok := ident.ParsePodPort(ident.PodPort(pod.Namespace, pod.Name, ident.DefaultNetwork))
		if !ok || ns != pod.Namespace || name != pod.Name || network != ident.DefaultNetwork {
			t.Errorf("%v becomes port of %s/%s/%s (%v)", pod, ns, name, network, ok)
		}
	})
}

// FuzzDecodeRequest: no input makes the decoder panic, and what it accepts is safe to use in names and paths.
func FuzzDecodeRequest(f *testing.F) {
	for _, seed := range []string{
		`{"version":1,"command":"ADD","network":"default","containerID":"c","netns":"/x","ifName":"eth0","pod":{"namespace":"n","name":"p"},"timeoutMillis":1}`,
		`{"version":1,"command":"DEL","containerID":"c","ifName":"eth0","timeoutMillis":9223372036854775807}`,
		`{"version":1,"command":"GC","conf":"x","valid":[{"containerID":"c","ifName":"eth0"}],"timeoutMillis":1}`,
		`{"version":1,"command":"CHECK","previous":{"ips":[{"address":"10.0.0.1/8","gateway":""}]}}`, `[]`, `null`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		req, err := decodeRequest(strings.NewReader(body))
		if err != nil {
			return
		}
		if req.Version != Version || req.TimeoutMillis <= 0 {
			t.Errorf("accepted version %d, timeout %d", req.Version, req.TimeoutMillis)
		}
		if req.Command == Add && (strings.ContainsAny(req.IfName, "/ ") || len(req.IfName) > 15 || strings.Contains(req.Pod.String(), "//")) {
			t.Errorf("accepted %+v", req)
		}
	})
}
