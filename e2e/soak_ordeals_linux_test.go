package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Victims are connections to an upstream that resets all of them now and then.
type victims struct {
	address string
	mu      sync.Mutex
	conns   map[net.Conn]bool
}

func newVictims(t *testing.T) *victims {
	v := &victims{conns: make(map[net.Conn]bool)}
	v.address = serve(t, listen(t), v.serve)
	return v
}

func (v *victims) serve(c net.Conn) {
	v.mu.Lock()
	v.conns[c] = true
	v.mu.Unlock()
	defer func() {
		v.mu.Lock()
		delete(v.conns, c)
		v.mu.Unlock()
	}()
	echo(c)
}

func (v *victims) reset() (n int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for c := range v.conns {
		reset(c)
		n++
	}
	return n
}

// endure has the events of a plan happen, one after the other. Upgrades and floods go on beside those that follow.
func (s *soak) endure(events []event) {
	for _, e := range events {
		<-time.After(e.At - s.now())
		began := s.now()
		detail := s.suffer(e.Kind, rand.New(rand.NewPCG(e.Dice, 0)))
		s.happened(happened{At: began, Took: s.now() - began, Kind: e.Kind, Detail: detail})
	}
}

func (s *soak) happened(h happened) {
	s.mu.Lock()
	s.Events = append(s.Events, h)
	s.mu.Unlock()
	s.t.Logf("%8s  %-7s %s", h.At.Round(100*time.Millisecond), h.Kind, h.Detail)
}

func (s *soak) suffer(kind ordeal, r *rand.Rand) (detail string) {
	switch kind {
	case reloads:
		return s.reload()
	case upgrades:
		return s.upgrade()
	case kills:
		return s.kill(r)
	case resets:
		return s.resetAll()
	case freezes:
		return s.freezeOne(r)
	case slows:
		return s.slowClients(r)
	case rudes:
		return s.rudeClients(r)
	default:
		return s.flood(r)
	}
}

// problem is something that is wrong whatever clients say.
func (s *soak) problem(format string, args ...any) string {
	text := fmt.Sprintf(format, args...)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Problems = append(s.Problems, fmt.Sprintf("at %s: %s", short(s.now()), text))
	return text
}

// within waits until it is so, and reports whether it is before it is late.
func within(d time.Duration, is func() bool) bool {
	for late := time.Now().Add(d); !is(); <-time.After(20 * time.Millisecond) {
		if time.Now().After(late) {
			return false
		}
	}
	return true
}

const reloaded, unreloaded = `levee_reloads_total{result="ok"}`, `levee_reloads_total{result="failed"}`

// reload is not asked for in the middle of an upgrade, for it would be a question which process is to reload.
func (s *soak) reload() string {
	s.upgrading <- struct{}{}
	defer func() { <-s.upgrading }()
	before, err := s.metrics()
	if err != nil {
		return s.problem("reload: %v", err)
	}
	who, err := s.tells()
	if err != nil {
		return s.problem("reload: %v", err)
	}
	s.reconfigure()
	if err := syscall.Kill(who.PID, syscall.SIGHUP); err != nil {
		return s.problem("reload: %v", err)
	}
	var after scrape
	if !within(patience, func() bool {
		after, err = s.metrics()
		return err == nil && (after[reloaded] > before[reloaded] || after[unreloaded] > before[unreloaded])
	}) || after[unreloaded] > before[unreloaded] {
		return s.problem("configuration %d is not taken: %v", s.variants, err)
	}
	return fmt.Sprintf("configuration %d", s.variants)
}

// upgrade begins one, once the process that the last one has replaced is gone.
func (s *soak) upgrade() string {
	s.upgrading <- struct{}{}
	if !within(2*patience, s.isAlone) {
		<-s.upgrading
		return s.problem("the old process of the last upgrade does not end")
	}
	s.ordeals.Go(func() {
		began := s.now()
		detail, err := s.replaceProcess()
		<-s.upgrading
		if err != nil {
			detail = s.problem("upgrade: %v", err)
		}
		gone := within(2*patience, s.isAlone)
		s.excuse(fault{byDrain, "upgrade", began, s.now()})
		if !gone {
			s.problem("the old process does not end")
		}
		s.t.Logf("%8s  upgrade begun at %s: %s; the old process is gone", s.now().Round(100*time.Millisecond), began.Round(100*time.Millisecond), detail)
	})
	return "begins"
}

func (s *soak) isAlone() bool {
	now, err := s.tells()
	return err == nil && (now.Predecessor == nil || now.Predecessor.Gone) && len(s.processes()) == 1
}

// replaceProcess is `levee upgrade`.
func (s *soak) replaceProcess() (said string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), longestReady)
	defer cancel()
	out, err := exec.CommandContext(ctx, levee, "upgrade", "--admin", strings.TrimPrefix(s.admin(""), "http://")).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return strings.TrimSpace(string(out)), err
}

func (s *soak) excuse(f fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Faults = append(s.Faults, f)
}

// fit waits until levee holds all servers of the fragile upstream for well: only one is to fail at a time, and levee is to
// find the others.
func (s *soak) fit() bool {
	return within(patience, func() bool {
		m, err := s.metrics()
		if err != nil {
			return false
		}
		for _, server := range []string{s.mortals[0], s.mortals[1], s.victims.address} {
			labels := fmt.Sprintf(`{server=%q,upstream="fragile"}`, server)
			if m["levee_upstream_healthy"+labels] != 1 || m["levee_breaker_state"+labels] != breakerClosed {
				return false
			}
		}
		return true
	})
}

const unfit = "not done: not all servers were well by then"

// kill ends a server, and starts it again on its port.
func (s *soak) kill(r *rand.Rand) string {
	i, dead := r.IntN(2), time.Duration(200+r.IntN(1500))*time.Millisecond
	if !s.fit() {
		return s.problem(unfit)
	}
	from := s.now()
	s.mortal[i].signal(syscall.SIGKILL)
	s.mortal[i].wait()
	s.excuse(fault{byFault, "kill", from, s.now()})
	<-time.After(dead)
	s.mortal[i] = startEcho(s.t, s.mortals[i])
	return fmt.Sprintf("server %d, for %v", i, dead)
}

func (s *soak) resetAll() string {
	if !s.fit() {
		return s.problem(unfit)
	}
	from := s.now()
	n := s.victims.reset()
	s.excuse(fault{byFault, "reset", from, s.now()})
	return fmt.Sprintf("%d connections of a server", n)
}

// freezeOne excuses nobody: who has to wait waits.
func (s *soak) freezeOne(r *rand.Rand) string {
	i, still := r.IntN(2), time.Duration(300+r.IntN(2000))*time.Millisecond
	if !s.fit() {
		return s.problem(unfit)
	}
	s.mortal[i].signal(syscall.SIGSTOP)
	<-time.After(still)
	s.mortal[i].signal(syscall.SIGCONT)
	return fmt.Sprintf("server %d, for %v", i, still)
}

func (s *soak) slowClients(r *rand.Rand) string {
	const n = 5
	var all sync.WaitGroup
	for i := range n {
		c := s.newClient(slowly, s.Habits[len(s.Habits)-1], 200+i, r.Uint64())
		all.Go(func() { c.visit(context.Background()) })
	}
	all.Wait()
	return fmt.Sprintf("%d clients", n)
}

// rudeClients are nobody's that is judged: they leave in the middle, in all ways that there are.
func (s *soak) rudeClients(r *rand.Rand) string {
	const n = 20
	anyOf := slices.DeleteFunc(slices.Clone(listenersOfSoak), func(name string) bool { return name == "steady" }) // whose server knows its clients
	for i := range n {
		listener := anyOf[r.IntN(len(anyOf))]
		c, err := dialFrom(fmt.Sprintf("127.0.2.%d", 1+i), s.addresses[listener])
		if err != nil {
			return s.problem("somebody who will be rude: connecting to %s: %v", listener, err)
		}
		s.opened(listener, new(deeds))
		_, _ = c.Write(make([]byte, r.IntN(100_000)))
		switch r.IntN(3) {
		case 0:
			reset(c)
		case 1:
			_ = c.(*net.TCPConn).CloseWrite()
			_ = c.SetDeadline(time.Now().Add(50 * time.Millisecond))
			_, _ = io.Copy(io.Discard, c)
			reset(c)
		default:
			c.Close()
		}
	}
	return fmt.Sprintf("%d clients", n)
}

// An assault is a listener and an attack on it. The attackers come from 127.0.0.1, where no client comes from.
type assault struct{ listener, attack string }

var assaults = []assault{
	{"echo", "hold"},
	{"echo", "churn"},
	{"echo", "resets"},
	{"echo", "half-close"},
	{"echo", "garbage"},
	{"echo", "pipeline"},
	{"echo", "slow-read"},
	{"tls", "slow-hello"},
	{"tls", "fragments"},
	{"tls", "hellos"},
	{"tls", "handshakes"},
	{"tls", "hold"},
}

// flood begins one, once the last one is over. What its own client feels is told, not judged: it has the machine to itself
// only in `levee flood`.
func (s *soak) flood(r *rand.Rand) string {
	a := assaults[r.IntN(len(assaults))]
	s.flooding <- struct{}{}
	s.ordeals.Go(func() {
		defer func() { <-s.flooding }()
		said, err := s.assault(a)
		if err != nil {
			said = s.problem("flood: %v", err)
		}
		s.t.Logf("%8s  flood of %s, %s, is over: %s", s.now().Round(100*time.Millisecond), a.listener, a.attack, said)
	})
	return a.attack + " on " + a.listener + " begins"
}

func (s *soak) assault(a assault) (said string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	args := []string{"flood", "--json", "--target", s.addresses[a.listener], "--attack", a.attack, "--connections", "200", "--rate", "200", "--duration", "3s", "--floor", "1s"}
	if a.listener == "tls" {
		args = append(args, "--tls", "--insecure-skip-verify", "--sni", "soak.example.com")
	}
	out, err := exec.CommandContext(ctx, levee, args...).Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 1 { // it did not hold
		err = nil
	}
	var report floodReport
	if err = errors.Join(err, json.Unmarshal(out, &report)); err != nil || len(report.Attacks) != 1 {
		return "", fmt.Errorf("%s on %s: %w: %s", a.attack, a.listener, err, out)
	}
	was := report.Attacks[0]
	return fmt.Sprintf("%d attempts, %d refused, %q", was.Attempts, was.Refused, was.Complaints), nil
}
