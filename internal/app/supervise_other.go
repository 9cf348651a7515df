//go:build !linux

package app

import (
	"context"
	"errors"
)

const canSupervise = false

func supervise(context.Context, Env, []string) error {
	return exit(exitUsage, errors.New("--supervise: is for Linux"))
}
