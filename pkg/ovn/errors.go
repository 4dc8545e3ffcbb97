package ovn

import "errors"

// Errors that a caller tells apart with errors.Is. All of them leave the database unchanged.
var (
	// ErrConflict: a row was changed by somebody else between reading and writing. Reading again and retrying helps.
	ErrConflict = errors.New("row was changed meanwhile")
	// ErrNotOurs: a row of that name exists and has no owner mark of Godwit's.
	ErrNotOurs = errors.New("row exists and is not Godwit's")
	// errTwice: a load balancer that was to be made is there already.
	errTwice = errors.New("another writer was first to make it: it is compared with the database")
)
