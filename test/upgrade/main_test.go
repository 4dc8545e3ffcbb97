package upgrade

import (
	"flag"
	"os"
	"testing"
	"time"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/godwit-cni/godwit/test/lab/fixture"
)

var from = flag.String("from", "", "revision of the older version; make test-upgrade gives one")

// patience bounds each wait, on a machine five times slower than the one that this was written on.
const patience = 4 * time.Minute

// TestMain says that nobody wants to know what controller-runtime's clients have to say.
func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	os.Exit(m.Run())
}

// eventually waits until check has nothing to say any more.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	fixture.Eventually(t, patience, check)
}
