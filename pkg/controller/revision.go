package controller

// revision is which state of something the database has. It belongs to what keeps that something, under its lock.
type revision struct {
	// version counts changes, written is the one that the database has, zero if that is not known.
	version, written int
	// sent is the one that was last made part of a transaction.
	sent, transaction int
}

// dirty says whether the database has something else than was told.
func (r revision) dirty() bool { return r.version != r.written }

// due says whether a transaction must bring it, and notes that it does: the next request in the same transaction need not.
func (r *revision) due(transaction int) bool {
	if !r.dirty() || r.sent == r.version && r.transaction == transaction {
		return false
	}
	r.sent, r.transaction = r.version, transaction
	return true
}
