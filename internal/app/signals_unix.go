//go:build unix

package app

import (
	"os"
	"syscall"
)

// upgradeSignal has a new process take the place of this one.
const upgradeSignal = syscall.SIGUSR2

// knownSignals are those that mean something to levee.
func knownSignals() []os.Signal {
	return []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, upgradeSignal}
}
