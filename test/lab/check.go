package lab

import "context"

// Check compares.
func (l *Lab) Check(ctx context.Context) ([]string, error) { return nil, ctx.Err() }
