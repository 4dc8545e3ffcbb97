// Package kernel tests Godwit on Open vSwitch's kernel datapath, in a virtual machine.
package kernel

import (
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/test/kernel/cluster"
)

func TestKernelGeneve(t *testing.T) {
	c := kernelCluster
	if err := c.Namespace(t.Context(), "geneve"); err != nil {
		t.Fatal(err)
	}
	var pods []*cluster.Pod
	for i, name := range []string{"one", "two"} {
		p, err := c.Nodes[i].Pod(t.Context(), types.NamespacedName{Namespace: "geneve", Name: name})
		if err != nil {
			t.Fatal(err, c.Logs(t.Context(), 10))
		}
		pods = append(pods, p)
	}
	for _, v4 := range []bool{true, false} {
		out, err := pods[0].In(t.Context(), "ping", "-c3", pods[1].Addr(v4).String())
		t.Log(out, err)
	}
	out, err := c.Nodes[0].AppCtl(t.Context(), "dpctl/show", "-s")
	t.Log(out, err)
}
