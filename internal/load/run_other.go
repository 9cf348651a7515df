//go:build !linux

package load

import "context"

func (l Load) run(ctx context.Context) (*Result, error) { return l.runTwin(ctx) }
