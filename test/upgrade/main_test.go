package upgrade

import (
	"flag"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"
)

var from = flag.String("from", "", "revision of the older version; make test-upgrade gives one")

const (
	// patience bounds each wait, on a machine five times slower than the one that this was written on.
	patience = 4 * time.Minute
	poll     = 100 * time.Millisecond
)

// TestMain says that nobody wants to know what controller-runtime's clients have to say.
func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	os.Exit(m.Run())
}

func logger(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// eventually waits until check has nothing to say any more.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) || t.Context().Err() != nil {
			t.Fatalf("after %s: %v", patience, err)
		}
		time.Sleep(poll)
	}
}
