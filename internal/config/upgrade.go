package config

import "time"

// Upgrade is how a new process takes the place of this one.
type Upgrade struct {
	Pos       Position
	Timeout   time.Duration
	Settle    time.Duration
	Probation time.Duration
	PIDFile   string
}

func (u *Upgrade) keys() []key {
	return []key{
		{
			"timeout", optional,
			duration{p: &u.Timeout, def: 30 * time.Second, min: time.Second, max: time.Minute},
			"How long the new process may take until it is ready. Then it is ended, and this one goes on.",
		},
		{
			"settle", optional,
			duration{p: &u.Settle, def: 2 * time.Second, min: 0, max: 30 * time.Second},
			"How long the new process must have been ready for before it accepts connections. Until then nobody notices if it fails.",
		},
		{
			"probation", optional,
			duration{p: &u.Probation, def: 5 * time.Second, min: 0, max: 30 * time.Second},
			"How long it must have been ready for before the open connections move to it. If it fails until then, this process takes the listeners back. Not less than settle.",
		},
		{
			"pid_file", optional,
			logFile(&u.PIDFile),
			"The file that says the number of the process that serves, for supervisors that want one.",
		},
	}
}

func (u *Upgrade) check(ps *Problems) {
	if u.Probation < u.Settle && ps.clean("upgrade.settle") && ps.clean("upgrade.probation") {
		ps.add(u.Pos, "upgrade.probation", "%s is less than settle (%s): connections move only to a process that accepts already", u.Probation, u.Settle)
	}
}
