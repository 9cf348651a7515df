package overload

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee"
)

// A tunnel joins each connection to the crowd's upstream, or to the probe's.
type tunnel struct{ crowd, probe string }

// doorOfProbe is where the probe comes in.
const doorOfProbe = "127.0.0.2"

func (a tunnel) ServeTCP(ctx context.Context, c *levee.Conn) error {
	return levee.ServeJoined(ctx, c, a)
}

func (a tunnel) Join(ctx context.Context, c *levee.Conn) (levee.Upstream, error) {
	var d net.Dialer
	to := a.crowd
	if strings.HasPrefix(c.LocalAddr().String(), doorOfProbe) {
		to = a.probe
	}
	conn, err := d.DialContext(ctx, "tcp", to)
	return levee.Upstream{Conn: conn}, err
}

const (
	idleTime    = 3 * time.Second
	noise       = 100 * time.Millisecond // of a machine that has other things to do
	slowReaders = 2000
	memoryOfAll = 256 << 20
	enough      = slowReaders / 4 // of them have to get in
	floodTime   = 8 * time.Second // at least, and until there are enough
	longest     = 2 * time.Minute
)

// The upstream sends as fast as it can to whoever says so, and echoes to others. The clients take 1 KB a second
// of it. All that the server may have is 256 MiB, and what the kernel holds for its sockets counts. Somebody
// who talks to the same upstream meanwhile does not notice.
func TestThousandsOfSlowReadersDoNotExhaustTheMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a quarter of a minute")
	}
	switch to := os.Getenv("OVERLOAD_UPSTREAM"); {
	case to != "":
		serveTunnel(t, tunnel{to, os.Getenv("OVERLOAD_PROBED")})
		return
	case os.Getenv("OVERLOAD_PROBE") != "":
		runProbe(t)
		return
	case os.Getenv("OVERLOAD_CROWD") != "":
		runCrowd(t)
		return
	}
	probe := &probe{child: startProcess(t, "", "OVERLOAD_PROBE=1")}
	crowd := startProcess(t, "", "OVERLOAD_CROWD=1")
	server := startInCgroup(t, memoryOfAll, "OVERLOAD_UPSTREAM="+crowd.line(t), "OVERLOAD_PROBED="+probe.child.line(t))
	ofCrowd, ofProbe := server.line(t), server.line(t)
	fmt.Fprintln(probe.child.in, ofProbe)
	var all sync.WaitGroup
	all.Go(probe.collect)
	<-time.After(idleTime)
	_, _, idle := probe.last()

	ctx, cancel := context.WithTimeout(t.Context(), longest)
	defer cancel()
	fmt.Fprintln(crowd.in, ofCrowd)
	least := time.Now().Add(floodTime)
	var readers slowCrowd
	all.Go(func() {
		for crowd.out.Scan() {
			_, _ = fmt.Sscanf(crowd.out.Text(), "readers %d %d %d", &readers.connected, &readers.refused, &readers.lost)
			if readers.connected >= enough {
				<-time.After(time.Until(least))
				cancel()
			}
		}
	})
	server.watch(ctx)
	trips, failed, p99 := probe.last()
	probe.child.in.Close()
	crowd.in.Close()
	all.Wait()

	t.Logf("probe: p99 %v, idle %v; %d of %d failed", p99, idle, failed, trips+failed)
	t.Logf("readers: %d connected and %d not; %d of them were there at the end", readers.connected, readers.refused, readers.connected-readers.lost)
	t.Logf("memory: %d MiB at most; of sockets %d MiB", server.most>>20, server.mostBuffers>>20)
	server.stop(t) // as a process that was killed could not
	if failed > 0 || trips < int(floodTime/(100*time.Millisecond)) {
		t.Errorf("%d round trips succeeded, %d failed", trips, failed)
	}
	if limit := max(3*idle, noise); p99 > limit {
		t.Errorf("a round trip takes %v, want %v", p99, limit)
	}
	if server.most > memoryOfAll {
		t.Errorf("%d MiB were in use", server.most>>20)
	}
	if readers.connected < enough {
		t.Errorf("no more than %d readers were let in", readers.connected)
	}
}

// serveTunnel is the server, in its process, until its standard input ends.
func serveTunnel(t *testing.T, to tunnel) {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	server := &levee.Server{Handler: to, Logger: log}
	c := &Controller{Servers: []*levee.Server{server}, Logger: log, AdjustMemoryLimit: SetMemoryLimit(log)}
	var doors []net.Listener
	for _, address := range []string{"127.0.0.1:0", doorOfProbe + ":0"} {
		l, err := levee.Listen(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		doors = append(doors, l)
		fmt.Println("listening", l.Addr())
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = server.Close()
	}()
	go c.Run(ctx)
	if err := server.Serve(ctx, doors...); !errors.Is(err, levee.ErrServerClosed) {
		t.Error(err)
	}
}

// startSender starts the upstream.
func startSender(t *testing.T) (address string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serveSender(c)
		}
	}()
	return l.Addr().String()
}

func serveSender(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	if first, _ := r.Peek(1); len(first) == 1 && first[0] == 's' {
		block := make([]byte, 64<<10)
		for err := error(nil); err == nil; {
			_, err = c.Write(block)
		}
		return
	}
	_, _ = io.Copy(c, r)
}

// A probe is a process that makes a round trip every 50 ms. It has its own upstream, so that only the
// server stands between the crowd and it.
type probe struct {
	child *child

	mu     sync.Mutex
	took   []time.Duration
	failed int
}

const failure = -1 // in place of a time

// runProbe is the probe, in its process.
func runProbe(t *testing.T) {
	fmt.Println("listening", startSender(t))
	lines := bufio.NewScanner(os.Stdin)
	if !lines.Scan() {
		return
	}
	conn, err := net.Dial("tcp", lines.Text())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		defer conn.Close() // which ends the loop
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for buffer := make([]byte, 64); ; <-tick.C {
		began := time.Now()
		_ = conn.SetDeadline(began.Add(time.Second))
		_, err := conn.Write(buffer)
		if err == nil {
			_, err = io.ReadFull(conn, buffer)
		}
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			fmt.Println("took", failure)
		default:
			fmt.Println("took", int64(time.Since(began)))
		}
	}
}

// collect takes down what the probe says, until it ends.
func (p *probe) collect() {
	for p.child.out.Scan() {
		text, ok := strings.CutPrefix(p.child.out.Text(), "took ")
		n, err := strconv.ParseInt(text, 10, 64)
		p.mu.Lock()
		switch {
		case !ok || err != nil:
		case n == failure:
			p.failed++
		default:
			p.took = append(p.took, time.Duration(n))
		}
		p.mu.Unlock()
	}
}

// last returns how it went since last was called.
func (p *probe) last() (trips, failed int, p99 time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	slices.Sort(p.took)
	if trips = len(p.took); trips > 0 {
		p99 = p.took[trips*99/100]
	}
	failed = p.failed
	p.took, p.failed = nil, 0
	return trips, failed, p99
}

// A slowCrowd is the clients.
type slowCrowd struct{ connected, refused, lost int }

// runCrowd is the clients and their upstream, in their process, until its standard input ends. They stand for
// other machines: the server and the probe have the processors first.
func runCrowd(t *testing.T) {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads { // those to come are as their makers
		id, _ := strconv.Atoi(thread.Name())
		_ = syscall.Setpriority(syscall.PRIO_PROCESS, id, 19)
	}
	fmt.Println("listening", startSender(t))
	lines := bufio.NewScanner(os.Stdin)
	if !lines.Scan() {
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	var s slowCrowd
	s.read(ctx, lines.Text())
	s.tell()
}

func (s *slowCrowd) tell() { fmt.Println("readers", s.connected, s.refused, s.lost) }

// read connects all, and has each read 1 KB a second.
func (s *slowCrowd) read(ctx context.Context, address string) {
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	b := make([]byte, 1000)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for turn := 0; ctx.Err() == nil; turn++ {
		for range min(5, slowReaders-s.connected-s.refused) {
			c, err := net.DialTimeout("tcp", address, time.Second)
			if err == nil {
				_, err = c.Write([]byte("s"))
			}
			if err != nil {
				s.refused++
				continue
			}
			conns = append(conns, c)
			if s.connected++; s.connected == enough {
				s.tell()
			}
		}
		kept := conns[:0]
		for i, c := range conns {
			if i%100 == turn%100 && !readSome(c, b) {
				s.lost++
				c.Close()
				continue
			}
			kept = append(kept, c)
		}
		conns = kept
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// readSome reports whether the connection is still there.
func readSome(c net.Conn, b []byte) bool {
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := c.Read(b)
	return err == nil || errors.Is(err, os.ErrDeadlineExceeded)
}
