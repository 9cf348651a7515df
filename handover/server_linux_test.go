package handover

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee"
)

// echoSteps returns what it is sent.
type echoSteps struct{ levee.Stateless }

func (e echoSteps) ServeTCP(_ context.Context, c *levee.Conn) error { return levee.ServeSteps(c, e) }

func (echoSteps) Step(_ *levee.Conn, in []byte, _ int, _ []byte) (int, []byte, error) {
	return len(in), in, nil
}

// A joiner joins every connection to one upstream.
type joiner struct{ to string }

func (j joiner) ServeTCP(ctx context.Context, c *levee.Conn) error {
	return levee.ServeJoined(ctx, c, j)
}

func (j joiner) Join(ctx context.Context, _ *levee.Conn) (levee.Upstream, error) {
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "tcp", j.to)
	return levee.Upstream{Conn: c}, err
}

func (j joiner) Rejoin(*levee.Conn) (levee.Upstream, error) { return levee.Upstream{}, nil }

// count answers each line with how many there were, in sequential code.
func count(_ context.Context, c *levee.Conn) error {
	n, _ := strconv.Atoi(string(c.Saved()))
	c.MovesWith(func() ([]byte, error) { return strconv.AppendInt(nil, int64(n), 10), nil })
	in := make([]byte, 100)
	for c.Next() {
		if _, err := c.Read(in); err != nil {
			return err
		}
		n++
		if _, err := fmt.Fprintln(c, n, os.Getpid()); err != nil {
			return err
		}
	}
	return nil
}

func who(_ context.Context, c *levee.Conn) error {
	_, err := fmt.Fprintln(c, os.Getpid())
	return err
}

// serverMain serves with levee's own servers.
func serverMain() int {
	p, ctx, upgrade, err := beginChild()
	if err != nil {
		return 2
	}
	plan := &Plan{Settle: durationOf("CHILD_SETTLE"), Probation: durationOf("CHILD_PROBATION")}
	addresses := make(map[string]string)
	for name, handler := range map[string]levee.Handler{
		"echo": echoSteps{}, "pair": joiner{os.Getenv("CHILD_UPSTREAM")}, "count": levee.HandlerFunc(count), "who": levee.HandlerFunc(who),
	} {
		address := "unix:" + os.Getenv("CHILD_FOLDER") + "/" + name
		l, err := p.Listen(ctx, address)
		if err != nil {
			fmt.Fprintln(os.Stderr, "listen:", err)
			return 3
		}
		addresses[name] = l.Addr().String()
		plan.Sockets = append(plan.Sockets, Socket{address, l})
		plan.Servers = append(plan.Servers, &levee.Server{Name: name, Handler: handler})
	}
	if err := p.Ready(ctx, plan.Servers...); err != nil {
		fmt.Fprintln(os.Stderr, "ready:", err)
		return 4
	}
	plan.AcceptAgain = func(sockets []Socket) {
		plan.Sockets = sockets
		for i, s := range plan.Servers {
			go func() { _ = s.Serve(context.Background(), sockets[i].Listener) }()
		}
	}
	plan.StopAccepting = func() {
		for i, s := range plan.Servers {
			s.HandOver(plan.Sockets[i].Listener)
		}
	}
	plan.AcceptAgain(plan.Sockets)
	tell("serving", map[string]any{"address": addresses["who"], "addresses": addresses})
	<-p.Done()
	tell("alone", map[string]any{"adopted": p.Adopted()})
	for {
		select {
		case <-ctx.Done():
			return 0
		case <-upgrade:
		}
		outcome, err := p.Upgrade(ctx, plan)
		if err != nil {
			tell("failed", map[string]any{"error": err.Error()})
			continue
		}
		tell("replaced", map[string]any{"by": outcome.PID, "moved": outcome.Moved, "stayed": outcome.Stayed, "ms": outcome.Moving.Milliseconds()})
		if os.Getenv("CHILD_STAYS") == "" {
			return 0 // who has stayed is cut
		}
	}
}

// pageMain is the page that makes a server replaceable.
func pageMain() int {
	p, ctx, upgrade, err := beginChild()
	if err != nil {
		return 2
	}
	s := &levee.Server{Name: "echo", Handler: echoSteps{}}
	go func() {
		if waitUntil(10*time.Second, func() bool { return s.Stats().Accepted > 0 || p.Adopted() > 0 }) {
			tell("serving", nil)
		}
	}()
	if err := p.ListenAndServe(ctx, upgrade, s, "unix:"+os.Getenv("CHILD_FOLDER")+"/echo"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	tell("left", nil)
	return 0
}

// stuckMain greets as echoMain does, but once it has replaced another accepts nobody.
func stuckMain() int {
	p, ctx, upgrade, err := beginChild()
	if err != nil {
		return 2
	}
	l, err := p.Listen(ctx, os.Getenv("CHILD_LISTEN"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "listen:", err)
		return 3
	}
	s := &levee.Server{Name: "who", Handler: levee.HandlerFunc(who)}
	if err := p.Ready(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "ready:", err)
		return 4
	}
	if p.From() == Predecessor {
		tell("stuck", nil)
		<-ctx.Done()
		return 0
	}
	plan := &Plan{
		Sockets: []Socket{{os.Getenv("CHILD_LISTEN"), l}}, Settle: durationOf("CHILD_SETTLE"), Probation: durationOf("CHILD_PROBATION"),
		StopAccepting: func() { s.HandOver(l) },
		AcceptAgain:   func(sockets []Socket) { go func() { _ = s.Serve(context.Background(), sockets[0].Listener) }() },
	}
	plan.AcceptAgain(plan.Sockets)
	tell("serving", map[string]any{"address": l.Addr().String()})
	<-upgrade
	_, err = p.Upgrade(ctx, plan)
	tell("failed", map[string]any{"error": fmt.Sprint(err)})
	<-ctx.Done()
	return 0
}

func TestServerOfAPageIsReplaced(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	f := startCommand(t, childCommand(), childRole+"=page", "CHILD_FOLDER="+folder)
	path := folder + "/echo"
	waitUntil(5*time.Second, func() bool { // it listens
		c, err := net.Dial("unix", path)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	s := newStream(t, path, 1)
	f.await("serving", f.pid())
	f.signal(syscall.SIGUSR2)
	f.await("left", f.pid())
	<-f.gone
	next := f.successor()
	if !s.flows(time.Second) || s.bad.Load() != nil {
		t.Errorf("the stream: lost %v, %v", s.lost.Load(), s.bad.Load())
	}
	talk(t, dialUnix(t, path), 1)
	if err := syscall.Kill(next.PID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.stop()
	f.await("left", next.PID)
}

// startUpstream echoes in the test's own process.
func startUpstream(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().String()
}

func TestServersConnectionsMoveByteExact(t *testing.T) {
	const busy, idle = 8, 300
	f := startCommand(t, childCommand(), childRole+"=server", "CHILD_FOLDER="+t.TempDir(), "CHILD_UPSTREAM="+startUpstream(t))
	first := f.await("serving", 0)
	var streams []*stream
	for i := range busy {
		streams = append(streams, newStream(t, first.Addresses["echo"], uint64(i)), newStream(t, first.Addresses["pair"], uint64(i)))
	}
	var quiet []net.Conn
	for range idle {
		quiet = append(quiet, dialUnix(t, first.Addresses["pair"]))
	}
	lines := dialUnix(t, first.Addresses["count"])
	answers := bufio.NewReader(lines)
	count := func(want int) (pid int) {
		t.Helper()
		_, _ = io.WriteString(lines, "line\n")
		var n int
		if _, err := fmt.Fscanln(answers, &n, &pid); err != nil || n != want {
			t.Errorf("line %d is counted as %d: %v", want, n, err)
		}
		return pid
	}
	if pid := count(1); pid != f.pid() {
		t.Errorf("counted by %d", pid)
	}
	for i, c := range quiet { // all of them are joined
		talk(t, c, i)
	}
	f.signal(syscall.SIGUSR2)
	replaced := f.await("replaced", f.pid())
	if want := 2*busy + idle + 1; replaced.Moved != want || replaced.Stayed != 0 {
		t.Errorf("%d connections have moved and %d stayed, of %d", replaced.Moved, replaced.Stayed, want)
	}
	t.Logf("%d connections moved in %d ms", replaced.Moved, replaced.MS)
	<-f.gone
	for i, s := range streams {
		if !s.flows(2*time.Second) || s.bad.Load() != nil {
			t.Errorf("stream %d: lost %v, %v", i, s.lost.Load(), s.bad.Load())
		}
	}
	for i, c := range quiet {
		talk(t, c, i)
	}
	if pid := count(2); pid != replaced.By {
		t.Errorf("counted by %d, not by %d", pid, replaced.By)
	}
}

func dialUnix(t *testing.T, path string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// talk sends something, and expects it back.
func talk(t *testing.T, c net.Conn, i int) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	sent := fmt.Sprintln("hello from", i)
	_, _ = io.WriteString(c, sent)
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != sent {
		t.Errorf("connection %d got %q (%v)", i, strings.TrimSpace(string(got)), err)
	}
}
