package main

import (
	"io"
	"strings"
	"testing"
)

func TestUsageIsSaid(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"exec"}, "want godwit-lab exec MACHINE -- COMMAND [ARG…] [flags]; see godwit-lab exec --help"},
		{[]string{"node", "crash"}, "want godwit-lab node crash NODE"},
		{[]string{"up", "three"}, "want godwit-lab up [flags]"},
		{[]string{"up", "--node", "3"}, "see godwit-lab up --help"},
		{[]string{"vm", "migrate"}, "see godwit-lab vm migrate --help"},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			root := newRoot()
			root.SetArgs(tt.args)
			root.SetOut(io.Discard)
			root.SetErr(io.Discard)
			if err := root.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("godwit-lab %s: %v: want an error with %q", strings.Join(tt.args, " "), err, tt.want)
			}
		})
	}
}
