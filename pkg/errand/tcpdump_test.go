package errand

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTcpdump(t *testing.T) {
	for _, test := range []struct {
		given, want string
		binary      bool
		// wrong is in the error.
		wrong string
	}{
		{given: "", want: "-n -p -l --immediate-mode"},
		{given: "tcp port 80", want: "-n -p -l --immediate-mode tcp port 80"},
		{given: "-evvc 10 icmp", want: "-n -p -l --immediate-mode -evvc 10 icmp"},
		{given: "-w - -s96", want: "-n -p -U -w - -s96", binary: true},
		{given: "-Uw- host 10.0.0.1", want: "-n -p -U -Uw- host 10.0.0.1", binary: true},
		{given: "-c -w", want: "-n -p -l --immediate-mode -c -w"}, // the argument of -c
		{given: "--snapshot-length 96 ip", want: "-n -p -l --immediate-mode --snapshot-length 96 ip"},
		{given: "-- -w", want: "-n -p -l --immediate-mode -- -w"}, // a filter
		{given: "-w /tmp/x", wrong: "-w /tmp/x: what is seen goes to standard output: -w - > FILE"},
		{given: "-w", wrong: "-w : what is seen"},
		{given: "-nei eth0", wrong: "-i: the interface is that of the VM or pod"},
		{given: "--interface=any", wrong: "--interface: the interface is"},
		{given: "--inter any", wrong: "--interface: the interface is"},
		{given: "-r file", wrong: "-r: the agent's container has no file"},
		{given: "-w - -C 10", wrong: "-C: what is seen goes to standard output"},
		{given: "-Z root", wrong: "-Z: it runs as nobody"},
		{given: "-w - --print", wrong: "--print: text and packets"},
	} {
		args, binary, err := Tcpdump(strings.Fields(test.given))
		if test.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), test.wrong) {
				t.Errorf("%q: %v, want %q", test.given, err, test.wrong)
			}
			continue
		}
		if diff := cmp.Diff([]any{test.want, test.binary, nil}, []any{strings.Join(args, " "), binary, any(err)}); diff != "" {
			t.Errorf("%q (-want +got):\n%s", test.given, diff)
		}
	}
}
