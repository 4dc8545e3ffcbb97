package netns

import (
	"errors"
	"io/fs"
	"os"
	"testing"
)

func current(t *testing.T) string {
	t.Helper()
	self, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return self
}

func TestNamespaceLivesUntilClose(t *testing.T) {
	home := current(t)
	n, err := New()
	if err != nil {
		t.Fatal(err)
	}
	var inside, through string
	read := func(into *string) func() error {
		return func() (err error) {
			*into, err = os.Readlink("/proc/thread-self/ns/net")
			return err
		}
	}
	if err := errors.Join(n.Do(read(&inside)), Do(n.Path(), read(&through))); err != nil {
		t.Fatal(err)
	}
	if inside == home || inside != through {
		t.Errorf("Namespace.Do ran in %s, Do(path) in %s, this test in %s: want the first two equal and another than the third", inside, through, home)
	}
	if now := current(t); now != home {
		t.Errorf("the test's own namespace became %s, was %s", now, home)
	}
	path := n.Path()
	n.Close()
	err = Do(path, func() error { return nil })
	for range 1000 {
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		err = Do(path, func() error { return nil })
	}
	t.Errorf("the namespace can be entered after Close: %v", err)
}
