// Package ovn writes the OVN northbound database.
//
// The verbs are the data plane's own: a [Change] ensures or deletes one row, and [NB.Apply] commits changes. Changes that are submitted while a
// transaction is in flight are committed together in the next one, so a burst of pods becomes a few transactions and a lone pod waits for nobody.
//
// Ownership is in external_ids: a row without ident.OwnerKey is somebody else's and is never changed. Within our rows only the columns and the map keys
// that a Change names are written, and every update is guarded by an OVSDB wait on the values that were read: a concurrent writer is answered by
// ErrConflict, never overwritten.
package ovn
