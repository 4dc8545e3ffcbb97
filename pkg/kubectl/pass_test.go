package kubectl

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

func TestWhatRunsOnANode(t *testing.T) {
	for _, test := range []struct {
		run         func([]string) onNode
		args        string
		where, want string
	}{
		{vsctl, "set bridge br-int x=y -- show", "ovs-node/vswitchd", "ovs-vsctl set bridge br-int x=y -- show"},
		{ofctl, "dump-flows br-int", "ovs-node/vswitchd", "ovs-ofctl dump-flows br-int"},
		{dpctl, "-m dump-flows --names", "ovs-node/vswitchd", "ovs-appctl dpctl/dump-flows -m --names"},
		{dpctl, "", "ovs-node/vswitchd", "ovs-appctl dpctl/help"},
		{appctl, "coverage/show", "ovs-node/vswitchd", "ovs-appctl -t ovs-vswitchd coverage/show"},
		{appctl, "-t vswitchd fdb/show br-int", "ovs-node/vswitchd", "ovs-appctl -t ovs-vswitchd fdb/show br-int"},
		{appctl, "-t ovn-controller connection-status", "ovn-controller/ovn-controller", "ovn-appctl -t ovn-controller connection-status"},
		{appctl, "--target=ovn-controller inc-engine/show-stats", "ovn-controller/ovn-controller", "ovn-appctl -t ovn-controller inc-engine/show-stats"},
		{appctl, "ofproto/trace br-int in_port=1 -t x", "ovs-node/vswitchd", "ovs-appctl -t ovs-vswitchd ofproto/trace br-int in_port=1 -t x"},
	} {
		got := test.run(strings.Fields(test.args))
		if where, args := got.component+"/"+got.container, strings.Join(got.args, " "); where != test.where || args != test.want {
			t.Errorf("%q: %s in %s, want %s in %s", test.args, args, where, test.want, test.where)
		}
	}
}

// status is what a member of NB says.
func status(role string) answer {
	return answer{stdout: "Name: OVN_Northbound\nStatus: cluster member\nRole: " + role + "\nTerm: 3\n"}
}

const askNB = "/nb: ovs-appctl -t /run/ovn/ovnnb_db.ctl cluster/status OVN_Northbound"

func TestLeader(t *testing.T) {
	said := answers{"ovn-central-0" + askNB: {stderr: "no such socket", code: 1}, "ovn-central-1" + askNB: status("follower"), "ovn-central-2" + askNB: status("leader")}
	c := clusterOf(t, said, ovnPod("ovn-central-0", centralComponent, "node1"), ovnPod("ovn-central-1", centralComponent, "node2"), ovnPod("ovn-central-2", centralComponent, "node3"))
	in, err := c.leader(t.Context(), northbound)
	if err != nil || in.pod.Name != "ovn-central-2" || in.name != "nb" {
		t.Errorf("leader %s, %v", in, err)
	}
	if in, err = c.member(t.Context(), northbound); err != nil || in.pod.Name != "ovn-central-1" {
		t.Errorf("member that answers %s, %v", in, err)
	}
	said["ovn-central-2"+askNB] = status("candidate")
	_, err = c.leader(t.Context(), northbound)
	for _, want := range []string{"OVN_Northbound has no leader (ovn-central-1 is a follower, ovn-central-2 is a candidate)", "--no-leader-only", "ovn-central-0: exited with 1: no such socket"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
}

// echoes are containers that write what they read, and end with a code.
type echoes int

func (code echoes) run(_ context.Context, p program) error {
	if p.stdin != nil {
		if _, err := io.Copy(p.stdout, p.stdin); err != nil {
			return err
		}
	}
	if code == 0 {
		return nil
	}
	return &ExitError{Code: int(code), what: p.args[0]}
}

func TestPass(t *testing.T) {
	for _, test := range []struct {
		name, want string
		code       echoes
		args       []string
	}{
		{"what is to be read arrives", "table=0,actions=drop", 0, []string{"ovs-ofctl", "add-flows", "br-int", "-"}},
		{"what is not asked for is left to others", "", 0, []string{"ovs-ofctl", "show", "br-int"}},
		{"a program's code is the command's", "", 4, []string{"ovs-vsctl", "get"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			cmd := &cobra.Command{SilenceUsage: true}
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return pass(cmd, test.code, container{}, test.args) }
			cmd.SetArgs([]string{})
			cmd.SetIn(strings.NewReader("table=0,actions=drop"))
			cmd.SetOut(&stdout)
			cmd.SetErr(&stderr)
			err := cmd.ExecuteContext(t.Context())
			if diff := cmp.Diff([]any{test.want, "", int(test.code)}, []any{stdout.String(), stderr.String(), ExitCode(err)}); diff != "" {
				t.Error(diff)
			}
		})
	}
}
