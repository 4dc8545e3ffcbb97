package lobby

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

func TestTheOneThatHasWaitedLongestGoes(t *testing.T) {
	l := &Lobby{Room: 2}
	var near, far [4]net.Conn
	for i := range near {
		near[i], far[i] = net.Pipe()
		defer near[i].Close() //nolint:errcheck // nothing is lost with it
	}
	for _, i := range []int{0, 1} {
		if shown := l.Enter(near[i]); shown != nil {
			t.Errorf("connection %d closes another, and there is room", i)
		}
	}
	if !l.Leave(near[0]) || l.Leave(near[0]) {
		t.Error("a connection leaves once, want that it was waiting, and is not any more")
	}
	if shown := l.Enter(near[2]); shown != nil {
		t.Error("there is no room where one has left")
	}
	if shown := l.Enter(near[3]); shown != near[1] {
		t.Errorf("%v is shown out, want the one that has waited longest", shown)
	}
	if l.Leave(near[1]) {
		t.Error("one that was shown out was waiting still")
	}
	for i, want := range []error{nil, io.EOF, nil, nil} { // those that are closed end; the others have nothing to say
		_ = far[i].SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := far[i].Read(make([]byte, 1)); errors.Is(err, io.EOF) != (want != nil) {
			t.Errorf("connection %d: %v, want it closed: %t", i, err, want != nil)
		}
	}
}
