package install

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"k8s.io/client-go/kubernetes"

	"github.com/godwit-cni/godwit/pkg/ovs"
	"github.com/godwit-cni/godwit/test/lab"
)

const (
	databaseDir = "/var/lib/godwit/ovn"
	// diskSize is room for both databases of a lab, and more than the least that nobody is alarmed of.
	diskSize = "128m"
)

// smallDisks gives the databases of each node a disk that can be filled, before there are any.
func smallDisks(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, node := range l.NodeNames() {
		if _, err := l.Exec(t.Context(), node, "sh", "-c", "mkdir -p "+databaseDir+" && mount -t tmpfs -o mode=755,size="+diskSize+" tmpfs "+databaseDir); err != nil {
			t.Fatal(err)
		}
	}
}

// diskFull fills the disk of a node that leads neither database: pods start all the same, those that run notice nothing, and whoever asks is told. When there is room again its members are as the others, also
// after their servers were killed.
func diskFull(t *testing.T, l *lab.Lab, client kubernetes.Interface) {
	node, pod := followerOf(t, l, client)
	writes, alarms := startWriting(t, l, node), newAlarms(t, l)
	start := time.Now()
	probes := watched(t, l, client, func() {
		room := fillDisk(t, l, node)
		podsBut(t, l, client, node)
		ran := time.Since(start)
		found(t, l, pod+" of ovn-central on "+node+" is not ready")
		eventually(t, func() error { return fullIsTold(t, l, node) })
		for _, database := range []model.LabelValue{"nb", "sb"} {
			alarms.fires(t, "GodwitDatabaseDiskFull", model.LabelSet{"severity": "critical", "database": database, "job": centralJob, "instance": model.LabelValue(centralTarget(l, node))})
		}
		room()
		again := time.Now()
		well(t, l)
		alarms.end(t, "GodwitDatabaseDiskFull")
		t.Logf("the disk of %s, which led neither database, was full: pods on the other nodes ran after %s; with room again it was well after %s",
			node, ran.Round(100*time.Millisecond), time.Since(again).Round(100*time.Millisecond))
	})
	t.Logf("the longest time without a write to NB was %s", writes.stop(t, start).Round(10*time.Millisecond))
	killServer(t, l, node, "nb")
	killServer(t, l, node, "sb")
	everyMemberSeesAll(t, l)
	eventually(t, func() error { return hears(t, l, node) })
	well(t, l)
	for i := range probes { // what is lost beside pods that start is bounded where it is watched for long (besidePods)
		p := &probes[i]
		t.Logf("of %d packets to %s %d were lost, the longest time without an answer was %s", p.Counts.Sent, p.Peer, p.Counts.Lost, p.Gap.Length().Round(time.Millisecond))
		if p.Gap.Open || p.Gap.Length() > silence {
			t.Errorf("a disk was full, and no answer came from %s for %s", p.Peer, p.Gap.Length())
		}
	}
}

// followerOf is a node that leads neither database, with its pod.
func followerOf(t *testing.T, l *lab.Lab, client kubernetes.Interface) (node, pod string) {
	t.Helper()
	leads := map[string]bool{leaderOf(t, l, "nb"): true, leaderOf(t, l, "sb"): true}
	for i := range members {
		if pod = fmt.Sprintf("ovn-central-%d", i); !leads[pod] {
			return podNode(t, client, pod), pod
		}
	}
	t.Fatalf("%d members lead, want two at most", len(leads))
	return "", ""
}

// fillDisk leaves no room on a node's disk of the databases, and returns what makes room again.
func fillDisk(t *testing.T, l *lab.Lab, node string) (room func()) {
	t.Helper()
	const filler = databaseDir + "/filler"
	said, err := l.Exec(t.Context(), node, "sh", "-c", "dd if=/dev/zero of="+filler+" bs=4k 2>&1; true")
	if err != nil || !strings.Contains(said, "No space left") {
		t.Fatalf("the disk of %s is not full: %q, %v", node, said, err)
	}
	return func() {
		if _, err := l.Exec(t.Context(), node, "rm", filler); err != nil {
			t.Fatal(err)
		}
	}
}

// freeBytes are a metric of less than a million.
var freeBytes = regexp.MustCompile(`(?m)^godwit_ovn_database_disk_free_bytes{database="(nb|sb)"} \d{1,6}$`)

// fullIsTold is an error unless a node's metrics say that there is no room for either database.
func fullIsTold(t *testing.T, l *lab.Lab, node string) error {
	said, err := l.Exec(t.Context(), node, "curl", "-sS", "--max-time", "10", "http://127.0.0.1:9479/metrics")
	if n := len(freeBytes.FindAllString(said, -1)); err == nil && n != 2 {
		err = fmt.Errorf("metrics of %s tell of %d databases without room, want 2", node, n)
	}
	return err
}

// hears writes through another node's member, and is an error unless a node's own has it.
func hears(t *testing.T, l *lab.Lab, node string) error {
	value := int(time.Now().UnixNano())
	for _, other := range l.NodeNames() {
		if other == node {
			continue
		}
		if err := write(t.Context(), strings.TrimPrefix(l.Database(other, "nb"), "unix:"), value); err != nil {
			return err
		}
	}
	var have json.RawMessage
	ask := map[string]any{"op": "select", "table": "NB_Global", "where": []any{}, "columns": []string{"external_ids"}}
	if err := ovs.Call(t.Context(), strings.TrimPrefix(l.Database(node, "nb"), "unix:"), "transact", []any{"OVN_Northbound", ask}, &have); err != nil {
		return err
	}
	if !strings.Contains(string(have), fmt.Sprint(value)) {
		return fmt.Errorf("the member on %s does not have what was written through others, %d: %s", node, value, have)
	}
	return nil
}
