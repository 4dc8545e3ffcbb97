package install

import (
	"context"
	"testing"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/fixture"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
	"github.com/godwit-cni/godwit/test/lab/passage"
)

// kubectlAsksOVNOfAVM asks what OVN has of a VM before, while and after it moves, and what becomes of packets to it and from it.
func kubectlAsksOVNOfAVM(t *testing.T, l *lab.Lab) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := passage.New(ctx, passage.Config{Lab: l, Log: fixture.Logger(t), Name: "install-kubectl-vm"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Remove(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	if err := s.Set(ctx); err != nil {
		t.Fatal(err)
	}
	vm, namespace := s.VM.Name, s.Namespace
	asks := func(all ...ask) {
		for _, a := range all {
			a.args = append([]string{"-n", namespace}, a.args...)
			a.run(t, l)
		}
	}
	asks(
		ask{args: []string{"port", vm, "-o", "wide"}, words: []string{"asks for", "requested-chassis=" + s.Source, "bound to", s.Source + ", up", "on " + s.Source + ", OpenFlow port ", "ovn-installed"}},
		ask{args: []string{"trace", "peer", vm, "tcp", "7"}, words: []string{"arrives: at VM " + namespace + "/" + vm + ", by the tunnel from node3 to " + s.Source}},
	)
	g, err := s.VM.Migrate(ctx, lab.MigrateOptions{To: s.Target, Hold: []kubevirt.Stage{kubevirt.StageMigrate}})
	if err != nil {
		t.Fatal(err)
	}
	asks( // on its way
		ask{args: []string{"port", vm, "-o", "wide"}, words: []string{
			"Migrating on " + s.Source, "activation-strategy=rarp", "requested-chassis=" + s.Source + "," + s.Target, s.Source + " and " + s.Target + ", up", "may attach on " + s.Target,
		}},
		ask{args: []string{"trace", "peer", vm, "tcp", "7"}, words: []string{"arrives: at VM " + namespace + "/" + vm}},
		ask{args: []string{"trace", vm, "peer", "-6"}, words: []string{"switch subnet/default, from VM " + namespace + "/" + vm + " on " + s.Source, "arrives: at pod " + namespace + "/peer"}},
		ask{args: []string{"migration", "check", vm}, words: []string{"fail  it is on its way from " + s.Source + " to " + s.Target}, code: 1},
	)
	if err := g.Release(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := g.AwaitSuccess(ctx); err != nil {
		t.Fatal(err)
	}
	asks(
		ask{args: []string{"port", vm, "-o", "wide"}, words: []string{"Attached on " + s.Target, "requested-chassis=" + s.Target, s.Target + ", up", "on " + s.Target + ", OpenFlow port "}},
		ask{args: []string{"trace", "peer", vm, "tcp", "7"}, words: []string{"arrives: at VM " + namespace + "/" + vm + ", by the tunnel from node3 to " + s.Target}},
		ask{args: []string{"migration", "check", vm}, words: []string{"it can move to ", " through the tunnels, and come back", "OVN has what a migration needs: ovn-controller ", "; ovn-northd "}},
	)
}
