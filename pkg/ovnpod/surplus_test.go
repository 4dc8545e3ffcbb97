package ovnpod

import (
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// A pod is not ready while a database has more members than there are pods, and stays what it was while the API server is away.
func TestCount(t *testing.T) {
	replicas, away := int32(3), false
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: CentralName, Namespace: "godwit-system"}, Spec: appsv1.StatefulSetSpec{Replicas: &replicas}}
	client := fake.NewClientset(set)
	client.PrependReactor("get", "statefulsets", func(clienttesting.Action) (bool, runtime.Object, error) {
		return away, nil, errors.New("nobody answers")
	})
	d := Database{Name: "OVN_Northbound", Kind: ProbeNB, Control: filepath.Join(t.TempDir(), "c")}
	w := &Watcher{Database: d, API: API{Client: client, Namespace: "godwit-system"}, Log: slog.Default()}
	four := parseStatus(leaderStatus)
	three, joining := four, four
	three.servers, joining.Member = four.servers[:3], false
	unaware := four
	unaware.servers = four.servers[1:]
	for _, step := range []struct {
		name string
		s    Status
		away bool
		want string
	}{
		{"it has not joined", joining, false, "nobody has counted"},
		{"it does not know of itself yet", unaware, false, "nobody has counted"},
		{"the API server is away at the start", three, true, "nobody has counted"},
		{"all is well", three, false, ""},
		{"it stays so without the API server", three, true, ""},
		{"one came in the place of another", four, false, "4 members, and 3 pods"},
		{"it stays so without the API server too", four, true, "4 members, and 3 pods"},
		{"the other was removed, and the API server is away", three, true, ""},
	} {
		away = step.away
		err := w.count(t.Context(), step.s)
		if err != nil && !away {
			t.Fatal(err)
		}
		if err := d.fitting(); step.want == "" && err != nil || step.want != "" && (err == nil || !strings.Contains(err.Error(), step.want)) {
			t.Errorf("%s: %v, want %q", step.name, err, step.want)
		}
	}
	alone := parseStatus(leaderStatus)
	alone.servers, away = alone.servers[:1], true
	single := &Watcher{Database: d, API: w.API, Log: w.Log}
	if err := errors.Join(single.forget(), single.count(t.Context(), alone), d.fitting()); err != nil {
		t.Errorf("a single member without the API server: %v", err)
	}
}

// TestMemberElsewhereIsNotReadyBeforeTheOther: a member comes up on another node with an empty disk. It is in order when the one in whose place it came was removed, and not before: the next one must not be taken.
func TestMemberElsewhereIsNotReadyBeforeTheOther(t *testing.T) {
	w := newWorld(t, 3)
	first := w.start(0, 1, t.TempDir())
	w.settled(first, 1)
	second, third := w.start(1, 2, t.TempDir()), w.start(2, 3, t.TempDir())
	for _, r := range []*run{first, second, third} {
		w.settled(r, 3)
		w.until(r.database.fitting)
	}
	third.end()
	elsewhere := w.start(2, 4, t.TempDir())
	w.settled(elsewhere, 4)
	joined := time.Now()
	if err := elsewhere.database.fitting(); err == nil {
		t.Error("it is ready, and the one in whose place it came is a member still")
	}
	w.until(elsewhere.database.fitting)
	w.settled(elsewhere, 3)
	t.Logf("ready %s after it had joined", time.Since(joined).Round(time.Second))
}
