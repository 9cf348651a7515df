package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests' processes are this test's binary, told by the environment to be one of them.
const childRole = "LEVEE_TEST_CHILD"

func TestMain(m *testing.M) {
	switch role := os.Getenv(childRole); role {
	case "":
		os.Exit(m.Run())
	case "echo":
		os.Exit(echoMain())
	case "server":
		os.Exit(serverMain())
	case "stuck":
		os.Exit(stuckMain())
	case "page":
		os.Exit(pageMain())
	}
}

// tell is how a child speaks to the test: a line of JSON on standard output, which a successor has too.
func tell(what string, more map[string]any) {
	line := map[string]any{"pid": os.Getpid(), "what": what}
	maps.Copy(line, more)
	text, _ := json.Marshal(line)
	_, _ = os.Stdout.Write(append(text, '\n'))
}

// beginChild is how a child begins: SIGTERM ends its context, and SIGUSR2 has it replaced.
func beginChild() (p *Process, ctx context.Context, upgrade chan os.Signal, err error) {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	ctx, _ = signal.NotifyContext(context.Background(), syscall.SIGTERM) // for as long as the process lives
	upgrade = make(chan os.Signal, 1)
	signal.Notify(upgrade, syscall.SIGUSR2)
	if p, err = Begin(); err != nil {
		fmt.Fprintln(os.Stderr, "begin:", err)
	}
	return p, ctx, upgrade, err
}

// echoMain greets everybody with the process's number, and returns what they send. SIGUSR2 has it replaced.
func echoMain() int {
	p, ctx, upgrade, err := beginChild()
	if err != nil {
		return 2
	}
	tell("begun", nil)
	if p.From() == Predecessor {
		if last := os.Getenv("CHILD_FAILS"); last != "" {
			fmt.Fprintln(os.Stderr, last)
			return 2
		}
		<-time.After(durationOf("CHILD_SLOW"))
	}
	p.PIDFile = os.Getenv("CHILD_PIDFILE")
	address := os.Getenv("CHILD_LISTEN")
	l, err := p.Listen(ctx, address)
	if err != nil {
		fmt.Fprintln(os.Stderr, "listen:", err)
		return 3
	}
	e := &echoes{conns: make(map[*echo]struct{})}
	if err := p.readyWith(ctx, map[string]adoptFunc{"echo": e.adopt}); err != nil {
		fmt.Fprintln(os.Stderr, "ready:", err)
		return 4
	}
	if os.Getenv("CHILD_STORES") != "" {
		if err := p.Store(Socket{address, l}); err != nil {
			fmt.Fprintln(os.Stderr, "store:", err)
			return 5
		}
	}
	defer p.Leave()
	go e.serve(l)
	tell("serving", map[string]any{"address": l.Addr().String(), "state": string(p.State("count")), "from": p.From().String()})
	go func() {
		<-p.Done()
		tell("alone", map[string]any{"adopted": p.Adopted()})
	}()
	for {
		select {
		case <-ctx.Done():
			return 0
		case <-upgrade:
		}
		began := time.Now()
		outcome, err := p.Upgrade(ctx, e.plan(address, l))
		took := time.Since(began).Milliseconds()
		if err != nil {
			l = e.listener(l)
			tell("failed", map[string]any{"error": err.Error(), "ms": took, "upgrading": errors.Is(err, ErrUpgrading)})
			continue
		}
		tell("replaced", map[string]any{"by": outcome.PID, "moved": outcome.Moved, "ms": took})
		if os.Getenv("CHILD_STAYS") == "" {
			return 0
		}
	}
}

func durationOf(name string) time.Duration {
	d, _ := time.ParseDuration(os.Getenv(name))
	return d
}

// echoes is a server whose connections can move.
type echoes struct {
	mu    sync.Mutex
	conns map[*echo]struct{}
	again net.Listener
}

type streamConn interface {
	net.Conn
	syscall.Conn
}

type echo struct {
	of     *echoes
	c      streamConn
	n      int64 // bytes so far
	parked chan struct{}
	buffer []byte
}

func (e *echoes) plan(address string, l net.Listener) *Plan {
	return &Plan{
		Sockets:      []Socket{{address, l}},
		State:        func() map[string][]byte { return map[string][]byte{"count": []byte("early")} },
		FreshState:   func() map[string][]byte { return map[string][]byte{"count": []byte("late")} },
		ReadyTimeout: durationOf("CHILD_READY"), Settle: durationOf("CHILD_SETTLE"), Probation: durationOf("CHILD_PROBATION"),
		StopAccepting: func() { _ = l.Close() },
		AcceptAgain: func(sockets []Socket) {
			e.mu.Lock()
			e.again = sockets[0].Listener
			e.mu.Unlock()
			go e.serve(sockets[0].Listener)
		},
		Progress: func(step Step) { fmt.Fprintln(os.Stderr, os.Getpid(), step) },
		pack:     e.pack,
	}
}

// listener returns that which is accepted from, if it was l before.
func (e *echoes) listener(l net.Listener) net.Listener {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.again != nil {
		return e.again
	}
	return l
}

func (e *echoes) serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			<-time.After(5 * time.Millisecond) // out of files
			continue
		}
		fmt.Fprintln(c, os.Getpid())
		e.own(&echo{of: e, c: c.(streamConn), buffer: make([]byte, 4096)})
	}
}

func (e *echoes) own(one *echo) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.conns[one] = struct{}{}
	one.parked = make(chan struct{})
	go one.run(one.parked)
}

func (one *echo) run(parked chan struct{}) {
	defer close(parked)
	for {
		n, err := one.c.Read(one.buffer)
		if n > 0 {
			one.n += int64(n)
			if _, err := one.c.Write(one.buffer[:n]); err != nil {
				break
			}
			continue
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return // it is packed
		}
		break
	}
	one.of.mu.Lock()
	delete(one.of.conns, one)
	one.of.mu.Unlock()
	_ = one.c.Close()
}

func (e *echoes) pack(ctx context.Context, found func(string, []parcel) bool) {
	e.mu.Lock()
	var all []*echo
	for one := range e.conns {
		all = append(all, one)
	}
	e.mu.Unlock()
	const batch = 3 // so that there are several
	for len(all) > 0 && ctx.Err() == nil {
		var parcels []parcel
		for _, one := range all[:min(batch, len(all))] {
			if p := one.pack(); p != nil {
				parcels = append(parcels, p)
			}
		}
		all = all[min(batch, len(all)):]
		if len(parcels) > 0 && !found("echo", parcels) {
			return
		}
	}
}

// An echoParcel is a connection that is packed.
type echoParcel struct {
	one *echo
	fd  int
}

func (one *echo) pack() parcel {
	_ = one.c.SetReadDeadline(time.Unix(1, 0))
	<-one.parked
	one.of.mu.Lock()
	_, there := one.of.conns[one]
	delete(one.of.conns, one)
	one.of.mu.Unlock()
	if !there {
		return nil // it has ended
	}
	fd := -1
	sock, _ := one.c.SyscallConn()
	_ = sock.Control(func(d uintptr) { fd, _ = unix.FcntlInt(d, unix.F_DUPFD_CLOEXEC, 3) })
	if fd < 0 {
		one.goOn()
		return nil
	}
	return &echoParcel{one, fd}
}

func (one *echo) goOn() {
	_ = one.c.SetReadDeadline(time.Time{})
	one.of.own(one)
}

func (p *echoParcel) Data() []byte   { return []byte(strconv.FormatInt(p.one.n, 10)) }
func (p *echoParcel) Sockets() []int { return []int{p.fd} }
func (p *echoParcel) Unpack()        { _ = unix.Close(p.fd); p.one.goOn() }
func (p *echoParcel) Moved()         { _ = unix.Close(p.fd); _ = p.one.c.Close() }

func (e *echoes) adopt(data []byte, sockets []int) (adopted, error) {
	f := os.NewFile(uintptr(sockets[0]), "moved")
	defer f.Close()
	n, err := strconv.ParseInt(string(data), 10, 64)
	if err != nil {
		return nil, err
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return &echo{of: e, c: c.(streamConn), n: n, buffer: make([]byte, 4096)}, nil
}

func (one *echo) Begin() { one.of.own(one) }
func (one *echo) Drop()  { _ = one.c.Close() }
