package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/levee-net/levee/handover"
	"github.com/levee-net/levee/internal/admin"
)

// Upgrades are how other processes take this one's place.
type upgrades struct {
	front  *front
	handed chan struct{} // closed when one has

	mu      sync.Mutex
	last    *admin.Upgrade     // nil before the first
	callOff context.CancelFunc // nil while there is none under way
	over    chan struct{}      // closed when that is over
	stopped bool               // none is to begin any more
	reload  bool               // somebody has asked for one meanwhile

	done, failed atomic.Int64
	before       atomic.Int64 // connections that had been handed over when this process began

	predecessor int         // its process number; 0 if this process has taken nobody's place
	gone        atomic.Bool // it has ended
	since       time.Time   // this one has taken its place
	first       time.Time   // the first of their row was started; zero if that is this one, or it is not known
}

// What becomes of an upgrade.
const (
	upgradeDone   = "done"
	upgradeFailed = "failed"
)

func (f *front) initUpgrades() {
	f.upgrades.front, f.upgrades.handed = f, make(chan struct{})
	f.registry.MustRegister(&f.upgrades)
}

var errNoPlace = fmt.Errorf("%w: an upgrade is under way, or levee drains", admin.ErrBusy)

// upgrade has a new process take this one's place, and returns when it has, or why it has not.
func (f *front) upgrade(context.Context) (admin.Upgrade, error) {
	u := &f.upgrades
	ctx, ok := u.begin()
	switch {
	case !ok && !u.isAlone():
		return admin.Upgrade{}, fmt.Errorf("%w: the process before (%d) has not ended yet, as %d connections finish there", admin.ErrBusy, u.predecessor, f.env.process.Left())
	case !ok:
		return admin.Upgrade{}, errNoPlace
	}
	f.log.Info("upgrading", "binary", f.env.Executable)
	outcome, err := f.env.process.Upgrade(ctx, f.plan())
	last := u.end(outcome, err)
	f.told.record.upgraded(&last)
	switch {
	case errors.Is(err, context.Canceled): // only stop does that
		f.log.Info("the upgrade is called off, as levee is to end")
		return last, err
	case err != nil:
		f.log.Error("not upgraded; this process goes on", "err", err)
		return last, err
	}
	f.log.Info("upgraded: another process serves", "pid", last.PID, "moved", last.Moved, "left", last.Left,
		"moving", outcome.Moving.Round(time.Millisecond), "took", outcome.Total.Round(time.Millisecond))
	return last, nil
}

// upgradeBySignal is upgrade for who cannot be told what came of it.
func (f *front) upgradeBySignal() {
	if _, err := f.upgrade(context.Background()); errors.Is(err, admin.ErrBusy) {
		f.log.Warn("not upgraded", "err", err)
	}
}

// begin reports whether there may be an upgrade now.
func (u *upgrades) begin() (ctx context.Context, ok bool) {
	f := u.front
	f.reloading.Lock() // none comes while this lasts
	defer f.reloading.Unlock()
	u.mu.Lock()
	defer u.mu.Unlock()
	if f.ending.Load() || u.stopped || u.callOff != nil || u.isHanded() || !u.isAlone() {
		return nil, false
	}
	ctx, cancel := context.WithCancel(context.Background())
	u.callOff, u.over = cancel, make(chan struct{})
	u.last = &admin.Upgrade{State: string(handover.Starting), Began: time.Now()}
	return ctx, true
}

func (u *upgrades) isHanded() bool { return isClosed(u.handed) }

// isAlone reports whether the process whose place this one has taken has ended.
func (u *upgrades) isAlone() bool { return isClosed(u.front.env.process.Done()) }

// postpones reports whether a reload has to wait for an upgrade. If that fails it is made then, and if not the new process
// has read what there is.
func (u *upgrades) postpones() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.reload = u.callOff != nil
	return u.reload || u.isHanded()
}

// end notes what has become of it.
func (u *upgrades) end(outcome *handover.Outcome, err error) admin.Upgrade {
	u.mu.Lock()
	defer u.mu.Unlock()
	defer close(u.over)
	u.callOff()
	u.callOff = nil
	u.last.Ended = time.Now()
	if err != nil {
		u.failed.Add(1)
		if u.reload {
			u.reload = false
			u.front.reloads.ask()
		}
		u.last.State, u.last.Problem = upgradeFailed, inOneLine(err)
		return *u.last
	}
	u.done.Add(1)
	u.last.State, u.last.PID = upgradeDone, outcome.PID
	u.last.Moved, u.last.Left = int64(outcome.Moved), int64(outcome.Stayed)
	close(u.handed)
	return *u.last
}

// started notes which process is to take this one's place.
func (u *upgrades) started(pid int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.last.PID = pid
}

// progress notes how far it has come.
func (u *upgrades) progress(s handover.Step) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.last.State = string(s)
}

// told returns what has become of the last, nil if there was none.
func (u *upgrades) told() *admin.Upgrade {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.last == nil {
		return nil
	}
	last := *u.last
	return &last
}

// toldPredecessor returns whose place this process has taken, nil if nobody's.
func (u *upgrades) toldPredecessor() *admin.Predecessor {
	if u.predecessor == 0 {
		return nil
	}
	return &admin.Predecessor{
		PID: u.predecessor, Since: u.since, Adopted: int64(u.front.env.process.Adopted()),
		Gone: u.gone.Load(), Left: int64(u.front.env.process.Left()),
	}
}

// tellLeft tells the process that has taken this one's place how many have yet to leave, until done is closed, and then
// what has been counted.
func (u *upgrades) tellLeft(done <-chan struct{}) {
	if !u.isHanded() {
		return
	}
	f := u.front
	often := time.NewTicker(200 * time.Millisecond)
	defer often.Stop()
	for {
		left := 0
		for _, server := range f.allServers() {
			left += server.Load().Active
		}
		f.env.process.TellLeft(left)
		select {
		case <-often.C:
			continue
		case <-done:
		}
		break
	}
	if err := f.env.process.Bequeath(f.saved(f.counters())); err != nil {
		f.log.Warn("what was counted last does not go along", "err", err)
	}
}

// hearLast takes over what the process has counted last whose place this one has taken.
func (u *upgrades) hearLast(ctx context.Context) {
	p := u.front.env.process
	select {
	case <-p.Done():
	case <-ctx.Done():
		return
	}
	u.front.restoreFrom(p.Bequest, u.front.counters())
	if u.predecessor != 0 {
		u.gone.Store(true)
		u.front.log.Info("the process before has ended", "pid", u.predecessor)
	}
}

// stop ends what is under way, as this process is to end, and has none begin any more. As long as the new process accepts
// nobody it is called off. After that it is waited for, which has a bound, and the new process is told to end as well; another
// signal ends the waiting.
func (u *upgrades) stop(sig os.Signal) {
	u.mu.Lock()
	u.stopped = true
	over, pid := u.over, 0
	switch {
	case u.callOff == nil:
		u.mu.Unlock()
		return
	case u.last.State == string(handover.Starting), u.last.State == string(handover.Settling):
		u.callOff()
	default:
		pid = u.last.PID
	}
	u.mu.Unlock()
	f := u.front
	for waits := true; waits; {
		select {
		case <-over:
			waits = false
		case again := <-f.env.Signals:
			if isStop(again) {
				f.log.Warn("a second signal: cutting what is left")
				f.closeServers()
				waits = false
			}
		}
	}
	if pid != 0 {
		signalProcess(pid, sig)
	}
}

// signalProcess does nothing to one that has ended.
func signalProcess(pid int, sig os.Signal) {
	if p, err := os.FindProcess(pid); err == nil {
		_ = p.Signal(sig)
		_ = p.Release()
	}
}

// plan says how this process is to be replaced.
func (f *front) plan() *handover.Plan {
	cfg := &f.now.Load().cfg.Upgrade
	return &handover.Plan{
		Path:          f.env.Executable,
		Args:          f.env.args[1:],
		Sockets:       f.openSockets(),
		State:         f.save,
		FreshState:    f.save,
		StopAccepting: f.stopAccepting,
		AcceptAgain:   f.acceptAgain,
		Servers:       f.allServers(),
		ReadyTimeout:  cfg.Timeout,
		Settle:        orNone(cfg.Settle),
		Probation:     orNone(cfg.Probation),
		Started:       f.upgrades.started,
		Progress:      f.upgrades.progress,
	}
}

// orNone is a duration as fields have it of which zero is the default.
func orNone(d time.Duration) time.Duration {
	if d == 0 {
		return -1
	}
	return d
}

// openSockets are all that is listened on.
func (f *front) openSockets() (all []handover.Socket) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.listeners {
		for _, s := range l.sockets {
			all = append(all, handover.Socket{Address: s.address.String(), Listener: s.Listener})
		}
	}
	if f.adminSocket != nil {
		all = append(all, handover.Socket{Address: f.first.Admin.Listen.String(), Listener: f.adminSocket.socket()})
	}
	return all
}

// stopAccepting leaves the sockets to another process.
func (f *front) stopAccepting() {
	for _, l := range f.every() {
		for _, s := range f.socketsOf(l) {
			l.server.HandOver(s.Listener)
		}
	}
	if f.adminSocket != nil {
		f.adminSocket.leave()
		f.scraped.freeze()
	}
}

func (f *front) socketsOf(l *listener) []*socket {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(l.sockets)
}

// acceptAgain takes them back: they are in the order of openSockets.
func (f *front) acceptAgain(sockets []handover.Socket) {
	next := func() (s handover.Socket) {
		s, sockets = sockets[0], sockets[1:]
		return s
	}
	for _, l := range f.every() {
		var open []*socket
		for _, s := range f.socketsOf(l) {
			open = append(open, &socket{Listener: next().Listener, address: s.address, closed: make(chan struct{})})
		}
		if len(open) > 0 {
			f.listenOn(l, open)
		}
	}
	if f.adminSocket != nil {
		f.scraped.thaw()
		f.adminSocket.takeBack(next().Listener)
	}
}

// awaitTurn returns when this process is to accept: at once, but where it is to take another's place.
func (f *front) awaitTurn(ctx context.Context) error {
	p := f.env.process
	p.Logger, p.PIDFile, p.Turn = f.log, f.first.Upgrade.PIDFile, f.restoreOwn
	if p.From() != handover.Predecessor {
		return p.Ready(ctx, f.now.Load().servers...)
	}
	f.upgrades.predecessor = p.PredecessorPID()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	turn := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() { // ends with the turn
		for {
			select {
			case <-turn:
				return
			case sig := <-f.env.Signals:
				f.hearEarly(sig, cancel)
			}
		}
	})
	err := p.Ready(ctx, f.now.Load().servers...)
	close(turn)
	watching.Wait()
	f.reloads.ask()                                // the files may have changed since this process has read them
	if cause := context.Cause(ctx); cause != nil { // also if it was this process's turn at the same moment
		return cause
	}
	return err
}

// hearEarly obeys a signal to a process that does not serve yet.
func (f *front) hearEarly(sig os.Signal, end context.CancelCauseFunc) {
	switch sig {
	case syscall.SIGHUP:
		f.reloads.ask()
	case upgradeSignal:
		f.log.Warn("not upgraded: this process has only begun to take another's place")
	default:
		end(fmt.Errorf("ended by a signal before it was to serve: %s", sig))
	}
}

// handedOn is what is handed on of upgrades.
type handedOn struct {
	Done, Failed, Moved int64
	Since               time.Time // the first of these processes was started
}

// Describe implements prometheus.Collector.
func (u *upgrades) Describe(ch chan<- *prometheus.Desc) {
	ch <- upgradesDesc
	ch <- handedOverDesc
}

var (
	upgradesDesc = prometheus.NewDesc("levee_upgrades_total",
		"Upgrades: new processes that have taken the place of a running one (done), or have not (failed).", []string{"result"}, nil)
	handedOverDesc = prometheus.NewDesc("levee_handed_over_connections_total",
		"Open connections that have moved to a new process.", nil, nil)
)

// Collect implements prometheus.Collector.
func (u *upgrades) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(upgradesDesc, prometheus.CounterValue, float64(u.done.Load()), upgradeDone)
	ch <- prometheus.MustNewConstMetric(upgradesDesc, prometheus.CounterValue, float64(u.failed.Load()), upgradeFailed)
	ch <- prometheus.MustNewConstMetric(handedOverDesc, prometheus.CounterValue, float64(u.moved()))
}

// servingSince is when the first process of the row was started.
func (u *upgrades) servingSince() time.Time {
	if u.first.IsZero() {
		return u.front.state.started
	}
	return u.first
}

// moved is how many connections have moved to this process, and to those before.
func (u *upgrades) moved() int64 { return u.before.Load() + int64(u.front.env.process.Adopted()) }

// Save returns what the process that takes this one's place goes on counting from.
func (u *upgrades) Save() ([]byte, error) {
	return json.Marshal(handedOn{u.done.Load(), u.failed.Load(), u.moved(), u.servingSince()})
}

// Restore goes on counting where another process has stopped, whose place this one has taken.
func (u *upgrades) Restore(state []byte) error {
	var h handedOn
	if err := json.Unmarshal(state, &h); err != nil {
		return err
	}
	u.since, u.first = time.Now(), h.Since
	u.done.Store(h.Done + 1) // it has not yet come to count this
	u.failed.Store(h.Failed)
	u.before.Store(h.Moved)
	return nil
}
