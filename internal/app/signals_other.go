//go:build !unix

package app

import (
	"os"
	"syscall"
)

// upgradeSignal never comes.
const upgradeSignal = syscall.Signal(-1)

// knownSignals are those that mean something to levee.
func knownSignals() []os.Signal { return []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP} }
