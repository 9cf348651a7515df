// Package attack attacks a server and judges it by what its other clients feel.
//
//	f := attack.Flood{Target: netip.MustParseAddrPort("127.0.0.1:7000"), Attacks: attack.All()}
//	report, err := f.Run(ctx)
//	for _, r := range report.Results {
//		fmt.Println(r.Attack, r.Complaints) // none is: it held
//	}
//
// Its secret is the well-behaved client: while an attack goes on, one makes round
// trips on a connection that it has, and on new ones, from an address that is not
// the attackers'. Whatever the server does to the attackers, that one must not
// notice. Any TCP server will do: it has to echo, to speak HTTP, or to answer bytes
// that the caller knows by bytes that he knows.
package attack

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os/exec"
	"slices"
	"time"
)

// A Flood is attacks on one server, one after the other. It must only be run against
// a server whose owner has agreed to it.
type Flood struct {
	Target      netip.AddrPort // an address, not a name, so that nobody can point it elsewhere after it was looked at
	Owned       bool           // the caller says that he owns Target; without it, only loopback addresses are attacked
	TLS         *tls.Config    // if set, the well-behaved client speaks TLS, as do attackers who get that far
	ServerName  string         // for attackers' TLS; empty is TLS's, or the address
	ProxyHeader bool           // connections begin with a PROXY protocol header
	Protocol    Protocol       // the zero value is found out: echo or HTTP
	Attacks     []Attack

	Connections int           // that an attack holds at once; 0 is 5,000; at most 15,000, and what open files allow
	Rate        float64       // new connections a second of all attackers; 0 is 5,000; at most 100,000
	Duration    time.Duration // of an attack; 0 is 12 s; at most 10 min

	// ProbeSource is where the well-behaved client connects from. The zero value is 127.77.0.1 where the target
	// is 127.0.0.0/8 and the system lets it (Linux does), so that limits per client can tell it from the attackers;
	// elsewhere it is whatever the system chooses.
	ProbeSource netip.Addr
	// Prefix has the IPv6 addresses that rotating attackers come from: a /48 that is routed here.
	Prefix netip.Prefix

	Interval time.Duration // between two round trips of the well-behaved client; four times that between new connections; 0 is 50 ms
	Recovery time.Duration // in which the server is to be as before, after an attack; 0 is 5 s
	Floor    time.Duration // what an idle server's p99 is taken for, at least; 0 is 10 ms. See Judge

	// Vitals measures the server. Nil looks at its processes, if they are on this machine and may be looked at.
	Vitals Meter

	// Elsewhere, if set, makes a command that calls Serve with its standard input and output: attackers are then in
	// a process of their own, which ends with what it returns' context. Without it they are in this one, where a
	// thousand of them keep the well-behaved client from its processor, which shows in what it measures.
	Elsewhere func(context.Context) *exec.Cmd

	Progress func(Progress) // if set, is told how it goes, five times a second; must not block
}

// What a flood may ask for. It bounds what a mistake can do.
const (
	maxConnections = 15_000 // of the 28,000 ports that one address of a client has on Linux
	maxRate        = 100e3  // more than one machine's kernel sets up
	maxDuration    = 10 * time.Minute
	maxAttempts    = 5_000_000 // connections of one attack
	maxSent        = 4 << 30   // bytes of one attack
)

const (
	defaultConnections = 5_000
	defaultRate        = 5_000
	defaultDuration    = 12 * time.Second // two more than the ten in which most servers want a client to have arrived
	defaultInterval    = 50 * time.Millisecond
	defaultRecovery    = 5 * time.Second
	defaultFloor       = 10 * time.Millisecond // see Judge
)

const (
	idlePhase    = 3 * time.Second // enough for 60 round trips
	recoveryLook = 100 * time.Millisecond
	tick         = 200 * time.Millisecond
)

// Progress is how an attack goes.
type Progress struct {
	Attack    string
	Index, Of int           // this is attack Index, from 0, of so many
	Elapsed   time.Duration // since it began
	Tally     Tally
	Probe     Health
}

// A Report is what came of a flood.
type Report struct {
	Protocol    string   // what the well-behaved client spoke
	Connections int      // that were allowed at once
	Remarks     []string // what is other than was asked for, and why
	Idle        Health   // of the well-behaved client, before the first attack
	Results     []Result
	Interrupted bool // it ended before its last attack did
}

// Suffered reports whether an attack did not go by unnoticed.
func (r *Report) Suffered() bool {
	return slices.ContainsFunc(r.Results, func(r Result) bool { return len(r.Complaints) > 0 })
}

// A Result is what came of one attack.
type Result struct {
	Attack        string
	Skipped       string        // why it was not made; then there is nothing else
	CutShort      bool          // the flood was interrupted: nothing is complained of
	Elapsed       time.Duration // how long it lasted
	Tally         Tally
	During, After Health // of the well-behaved client
	Spent         Spent
	Recovered     time.Duration // how long after it the server was back at base; negative is not, or not known
	Complaints    []string      // none is: it held
}

// Check says what is wrong with the flood, which Run would say too.
func (f Flood) Check() error {
	switch {
	case !f.Target.IsValid() || f.Target.Port() == 0:
		return errors.New("no target")
	case !f.Owned && !f.Target.Addr().Unmap().IsLoopback():
		return fmt.Errorf("%s is not a loopback address, and nobody said that he owns it", f.Target.Addr())
	case len(f.Attacks) == 0:
		return errors.New("no attacks")
	case f.Connections < 0 || f.Connections > maxConnections:
		return fmt.Errorf("%d connections: at most %d", f.Connections, maxConnections)
	case f.Rate < 0 || f.Rate > maxRate || math.IsNaN(f.Rate):
		return fmt.Errorf("%g connections a second: at most %.0f", f.Rate, maxRate)
	case f.Duration < 0 || f.Duration > maxDuration:
		return fmt.Errorf("duration of %s: at most %s", f.Duration, maxDuration)
	case f.Prefix.IsValid() && (!f.Prefix.Addr().Is6() || f.Prefix.Bits() > 48):
		return fmt.Errorf("%s: want an IPv6 prefix of at most 48 bits", f.Prefix)
	}
	return nil
}

// withDefaults also says what cannot be had.
func (f Flood) withDefaults() (Flood, []string) {
	f.Target = netip.AddrPortFrom(f.Target.Addr().Unmap(), f.Target.Port())
	f.Connections = cmp.Or(f.Connections, defaultConnections)
	f.Rate = cmp.Or(f.Rate, defaultRate)
	f.Duration = cmp.Or(f.Duration, defaultDuration)
	f.Interval = cmp.Or(f.Interval, defaultInterval)
	f.Recovery = cmp.Or(f.Recovery, defaultRecovery)
	f.Floor = cmp.Or(f.Floor, defaultFloor)
	if !f.Prefix.IsValid() {
		f.Prefix = DefaultPrefix
	}
	var remarks []string
	if room := filesLeft(); f.Connections > room {
		remarks = append(remarks, fmt.Sprintf("%d connections at once instead of %d: the limit of open files allows no more (ulimit -n)", room, f.Connections))
		f.Connections = room
	}
	return f, remarks
}

// Run makes the attacks. Its error says why none could be made: that the server
// cannot be reached, or what it speaks is not known. When ctx ends, so does Run, at
// once, with what there is.
func (f Flood) Run(ctx context.Context) (*Report, error) {
	if err := f.Check(); err != nil {
		return nil, err
	}
	f, remarks := f.withDefaults()
	t, err := f.reconnoitre(ctx)
	if err != nil {
		return nil, err
	}
	r := &Report{Protocol: t.protocol.name, Connections: f.Connections, Remarks: append(remarks, t.remarks...)}
	p := newProbe(ctx, t, f.Interval)
	defer p.close()
	idle, stop := context.WithTimeout(ctx, min(idlePhase, f.Duration))
	r.Idle = p.watch(idle)
	stop()
	for i, a := range f.Attacks {
		if ctx.Err() != nil {
			break
		}
		result := Result{Attack: a.Name, Skipped: a.unsuited(ctx, t)}
		if result.Skipped == "" {
			result = f.conduct(ctx, i, a, t, p, r.Idle)
		}
		r.Results = append(r.Results, result)
	}
	r.Interrupted = ctx.Err() != nil
	return r, nil
}

// conduct makes one attack: the attackers strike, then are gone, and the server has
// some time to be as it was.
func (f *Flood) conduct(ctx context.Context, index int, a Attack, t *target, p *probe, idle Health) Result {
	base, known := t.measure(ctx)
	began := time.Now()
	force := f.muster(a, t)
	during, stop := context.WithTimeout(ctx, f.Duration)
	defer stop()
	told := f.tellProgress(during, func() Progress {
		return Progress{a.Name, index, len(f.Attacks), time.Since(began), force.soFar(), p.soFar()}
	})
	struck := make(chan error)
	go func() { struck <- force.strike(during) }()
	r := Result{Attack: a.Name, During: p.watch(during, a.others()...)}
	failed := <-struck
	<-told
	r.Elapsed, r.Tally = time.Since(began), force.soFar()
	after := f.awaitRecovery(ctx, t, p, base, known)
	r.After, r.Recovered = after.health, after.took
	if known {
		r.Spent = after.end.since(base)
	}
	if r.CutShort = ctx.Err() != nil; r.CutShort {
		return r
	}
	r.Complaints = Judge(idle, r.During, r.After, f.Floor)
	if after.left != "" {
		r.Complaints = append(r.Complaints, fmt.Sprintf("not as before after %s: %s", f.Recovery, after.left))
	}
	if failed != nil {
		r.Complaints = append(r.Complaints, "the attackers did not all get to it: "+failed.Error())
	}
	return r
}

// A recovery is how a server gets over an attack.
type recovery struct {
	health Health
	end    Vitals
	took   time.Duration // until it was back at base; negative is that it was not
	left   string        // what it has more than before
}

// awaitRecovery waits until the server is back at base, but not for ever, and for the
// well-behaved client's sake not too short.
func (f *Flood) awaitRecovery(ctx context.Context, t *target, p *probe, base Vitals, known bool) recovery {
	ctx, stop := context.WithTimeout(ctx, f.Recovery)
	defer stop()
	watched := make(chan Health, 1)
	go func() { watched <- p.watch(ctx) }()
	r := recovery{took: -1, end: base}
	for began, least := time.Now(), min(time.Second, f.Duration); ; {
		if known {
			r.look(ctx, t, base)
		}
		if known && r.left == "" && r.took < 0 {
			r.took = time.Since(began)
		}
		if r.left == "" && time.Since(began) >= least || !sleep(ctx, recoveryLook) {
			break
		}
	}
	stop()
	r.health = <-watched
	return r
}

// look measures the server again.
func (r *recovery) look(ctx context.Context, t *target, base Vitals) {
	end, known := t.measure(ctx)
	switch {
	case known:
		r.end, r.left = end, end.above(base)
	case ctx.Err() == nil:
		r.left = "it can no longer be measured"
	}
}

// tellProgress tells it until ctx ends, and then closes what it returns.
func (f *Flood) tellProgress(ctx context.Context, now func() Progress) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for f.Progress != nil && sleep(ctx, tick) {
			f.Progress(now())
		}
	}()
	return done
}

// sleep reports whether ctx let it sleep.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
