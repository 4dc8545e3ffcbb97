package bundle

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/godwit-cni/godwit/test/lab/packages"
	"github.com/godwit-cni/godwit/test/lab/source"
)

// TestImage writes the image twice: nodes import it again only when it has changed.
func TestImage(t *testing.T) {
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	base, err := packages.Ensure(t.Context(), log)
	if err != nil {
		t.Fatal(err)
	}
	programs, release, err := source.Programs(t.Context(), log, Programs()...)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	archive := filepath.Join(t.TempDir(), "launcher.tar")
	var digests [2]string
	for i := range digests {
		b, err := New(t.Context(), log, base, programs)
		if err != nil {
			t.Fatal(err)
		}
		img, err := b.Image()
		if err != nil {
			t.Fatal(err)
		}
		if digests[i], err = img.Write(archive); err != nil {
			t.Fatal(err)
		}
	}
	if digests[0] != digests[1] {
		t.Errorf("the same input gave digests %s and %s", digests[0], digests[1])
	}
	fi, err := os.Stat(archive)
	if err != nil {
		t.Fatal(err)
	}
	const limit = 120 << 20
	if fi.Size() > limit {
		t.Errorf("the image has %d bytes, want at most %d: every node has a copy", fi.Size(), limit)
	}
	t.Logf("%d bytes", fi.Size())
}
