package controller

import "testing"

func TestRevision(t *testing.T) {
	r := revision{version: 1}
	check := func(what string, transaction int, want bool) {
		t.Helper()
		if got := r.due(transaction); got != want {
			t.Errorf("%s: due in transaction %d is %v, want %v (%+v)", what, transaction, got, want, r)
		}
	}
	check("new", 1, true)
	check("another request of the transaction", 1, false)
	r.version++
	check("it changes before the transaction is sent", 1, true)
	check("the transaction was refused, and is tried again", 2, true)
	r.written = r.sent
	check("written", 3, false)
	r.written = 0
	check("somebody may have changed it", 3, true)
}
