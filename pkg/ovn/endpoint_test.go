package ovn

import (
	"strings"
	"testing"

	"github.com/godwit-cni/godwit/pkg/pki"
)

func TestCheckEndpoints(t *testing.T) {
	for _, c := range []struct {
		endpoint     string
		certificates bool
		want         string
	}{
		{"tcp:192.0.2.1:6641", false, ""},
		{"unix:/run/ovn/nb.sock", false, ""},
		{"unix:/run/ovn/nb.sock", true, ""},
		{"ssl:ovn.example:6641", true, ""},
		{"ssl:[2001:db8::1]:6641", true, ""},
		{"ssl:ovn.example:6641", false, "needs certificates: --dir"},
		{"tcp:192.0.2.1:6641", true, "would be reached without TLS"},
		{"ssl:ovn.example", true, "want ssl:HOST:PORT"},
		{"tls:ovn.example:6641", true, "want ssl:HOST:PORT"},
		{"unix:", false, "want ssl:HOST:PORT"},
	} {
		var files *pki.Files
		if c.certificates {
			files = &pki.Files{}
		}
		err := CheckEndpoints([]string{c.endpoint}, files, "--dir")
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s, certificates %v: %v, want %q", c.endpoint, c.certificates, err, c.want)
		}
	}
}
