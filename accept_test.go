package levee_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// withProcessors decides about the number of acceptors: there is one up to 7
// processors, and more from 8 on.
func withProcessors(t *testing.T, n int) {
	t.Helper()
	before := runtime.GOMAXPROCS(n)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
}

// pauses records the times and the pauses that AcceptFailed was told.
type pauses struct {
	mu    sync.Mutex
	start time.Time
	at    []time.Duration
	next  []time.Duration
	errs  []error
}

func (p *pauses) trace() *levee.Trace {
	p.start = time.Now()
	return &levee.Trace{AcceptFailed: func(_ net.Listener, err error, pause time.Duration) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.at = append(p.at, time.Since(p.start))
		p.next = append(p.next, pause)
		p.errs = append(p.errs, err)
	}}
}

func TestFailedAcceptsAreRetriedAfterPausesThatDoubleToASecond(t *testing.T) {
	ms := time.Millisecond
	want := []time.Duration{5 * ms, 10 * ms, 20 * ms, 40 * ms, 80 * ms, 160 * ms, 320 * ms, 640 * ms, time.Second, time.Second}
	for _, failure := range []error{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EPERM,
		errors.New("an error that nobody has heard of"),
	} {
		t.Run(failure.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := leveetest.Listen()
				for range want {
					l.FailAccepts(failure)
				}
				client := dial(t, l)
				var told pauses
				s := serve(t, &levee.Server{Handler: echoing, Trace: told.trace()}, l)

				if err := exchange(client, "still there?"); err != nil {
					t.Fatal(err)
				}
				due := time.Duration(0)
				for i, pause := range want {
					if told.at[i] != due || told.next[i] != pause {
						t.Errorf("failure %d at %v, next try in %v; want at %v, in %v", i, told.at[i], told.next[i], due, pause)
					}
					if !errors.Is(told.errs[i], failure) {
						t.Errorf("Trace was told %v, want %v", told.errs[i], failure)
					}
					due += pause
				}
				if served := time.Since(told.start); served != due {
					t.Errorf("served after %v, want %v", served, due)
				}

				l.FailAccepts(failure) // after a success the pauses begin anew
				if err := exchange(dial(t, l), "and now?"); err != nil {
					t.Fatal(err)
				}
				if last := told.next[len(told.next)-1]; last != 5*ms {
					t.Errorf("after a success the pause was %v, want 5ms", last)
				}
				if n := s.Stats().AcceptErrors; n != int64(len(want)+1) {
					t.Errorf("%d accept errors counted, want %d", n, len(want)+1)
				}
				if load := s.Load(); load.AcceptPauses != int64(len(want)+1) || load.AcceptsPaused != 0 {
					t.Errorf("accepting has paused %d times, %d pause; want %d and none", load.AcceptPauses, load.AcceptsPaused, len(want)+1)
				}
			})
		})
	}
}

func TestShutdownInterruptsThePauseAfterAFailedAccept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		for range 10 {
			l.FailAccepts(syscall.EMFILE)
		}
		s := serve(t, &levee.Server{Handler: answering}, l)
		time.Sleep(1300 * time.Millisecond) // virtual time
		client := dial(t, l)                // and this one waits for the end of it
		go exchange(client, "in time\n")
		synctest.Wait()

		start := time.Now() // one failure is still to come, and must not cost the client its turn
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > 10*time.Millisecond {
			t.Errorf("Shutdown took %v: it waited for the pause", took)
		}
		if err := s.result(); !errors.Is(err, levee.ErrServerClosed) {
			t.Errorf("Serve returned %v, want ErrServerClosed", err)
		}
		checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.Drained: 1})
	})
}

// safeBuffer is a bytes.Buffer for a logger that several goroutines use.
type safeBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// lines returns the log's lines, decoded from JSON.
func (b *safeBuffer) lines(t *testing.T) []map[string]any {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []map[string]any
	for line := range bytes.Lines(b.buf.Bytes()) {
		var entry map[string]any
		if err := json.Unmarshal(line, &entry); err != nil {
			t.Fatal(err)
		}
		all = append(all, entry)
	}
	return all
}

func TestFailedAcceptsAreLoggedOnceASecondWithTheNumberHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		for range 12 {
			l.FailAccepts(syscall.ENFILE)
		}
		var log safeBuffer
		start := time.Now()
		s := serve(t, &levee.Server{Handler: echoing, Logger: slog.New(slog.NewJSONHandler(&log, nil))}, l)
		if err := exchange(dial(t, l), "through"); err != nil {
			t.Fatal(err)
		}
		// The failures come at 0, 5, 15, 35, 75, 155, 315, 635, 1275 ms, and then each second.
		type line struct {
			at   time.Duration
			held float64
		}
		want := []line{{0, 0}, {1275 * time.Millisecond, 7}, {2275 * time.Millisecond, 0}, {3275 * time.Millisecond, 0}, {4275 * time.Millisecond, 0}}
		got := log.lines(t)
		if len(got) != len(want) {
			t.Fatalf("%d lines for %d failures, want %d: %v", len(got), s.Stats().AcceptErrors, len(want), got)
		}
		for i, entry := range got {
			at, _ := time.Parse(time.RFC3339Nano, entry["time"].(string))
			held, _ := entry["more_like_it"].(float64)
			if now := (line{at.Sub(start), held}); now != want[i] {
				t.Errorf("line %d: %v, want %v", i, now, want[i])
			}
			if entry["listener"] != l.Addr().String() || !strings.Contains(entry["err"].(string), "too many open files") {
				t.Errorf("line %d does not say what failed where: %v", i, entry)
			}
		}
	})
}

func TestListenerClosedFromOutsideEndsServeWithAnError(t *testing.T) {
	for _, processors := range []int{2, 16} { // one acceptor, and several
		withProcessors(t, processors)
		synctest.Test(t, func(t *testing.T) {
			l, neighbour := leveetest.Listen(), leveetest.Listen()
			s := serve(t, &levee.Server{Handler: answering}, l, neighbour)
			client := dial(t, neighbour)
			if err := exchange(client, "before\n"); err != nil {
				t.Fatal(err)
			}
			l.Close()
			err := s.result()
			if !errors.Is(err, net.ErrClosed) || !strings.HasPrefix(err.Error(), "accept on "+l.Addr().String()+": ") {
				t.Errorf("Serve returned %v", err)
			}
			synctest.Wait()
			if _, err := neighbour.Dial(t.Context()); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("Serve has returned, and its other listener takes connections: %v", err)
			}
			if err := exchange(client, "after\n"); err != nil {
				t.Errorf("the connection did not survive its listener: %v", err)
			}
			if err := s.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAcceptingPausesAtMaxConns(t *testing.T) {
	withProcessors(t, 16)
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: echoing, MaxConns: 2}, l)
		first, second, third := dial(t, l), dial(t, l), dial(t, l)
		for _, c := range []net.Conn{first, second} {
			if err := exchange(c, "one of two"); err != nil {
				t.Fatal(err)
			}
		}
		served := make(chan error)
		go func() { served <- exchange(third, "the third") }()
		synctest.Wait()
		if queued, stats := l.Queued(), s.Stats(); queued != 1 || stats.Active != 2 || stats.MaxConns != 2 {
			t.Errorf("%d in the queue, %d active, cap %d; want 1, 2, 2", queued, stats.Active, stats.MaxConns)
		}
		if load := s.Load(); load.AcceptPauses != 1 || load.AcceptsPaused != 1 {
			t.Errorf("accepting has paused %d times, %d pause; want 1 and 1", load.AcceptPauses, load.AcceptsPaused)
		}
		start := time.Now()
		first.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if waited := time.Since(start); waited != 0 {
			t.Errorf("the third waited %v after the first had left", waited)
		}
		synctest.Wait() // with the third it is full again
		if load := s.Load(); load.AcceptPauses != 2 || load.AcceptsPaused != 1 {
			t.Errorf("accepting has paused %d times, %d pause; want 2 and 1", load.AcceptPauses, load.AcceptsPaused)
		}
		second.Close()
		synctest.Wait()
		if n := s.Load().AcceptsPaused; n != 0 {
			t.Errorf("%d pause where there is room", n)
		}
		checkStats(t, s.Stats(), 1, map[levee.CloseReason]int64{levee.ClientClosed: 2})
	})
}

func TestIdleListenersTakeNothingFromMaxConns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		quiet, alsoQuiet, busy := leveetest.Listen(), leveetest.Listen(), leveetest.Listen()
		s := serve(t, &levee.Server{Handler: echoing, MaxConns: 1}, quiet, alsoQuiet, busy)
		for _, l := range []*leveetest.Listener{busy, busy, quiet, busy, alsoQuiet} {
			c := dial(t, l)
			if err := exchange(c, "the only one"); err != nil {
				t.Fatal(err)
			}
			c.Close()
		}
		synctest.Wait()
		checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.ClientClosed: 5})
	})
}

func TestNoMoreThanMaxConnsAreOpenOverSeveralListeners(t *testing.T) {
	withProcessors(t, 16)
	synctest.Test(t, func(t *testing.T) {
		var open, most atomic.Int64
		handler := handle(func(_ context.Context, c *levee.Conn) error {
			now := open.Add(1)
			defer open.Add(-1)
			for seen := most.Load(); now > seen && !most.CompareAndSwap(seen, now); seen = most.Load() {
			}
			time.Sleep(time.Millisecond) // virtual time
			return echo(c)
		})
		listeners := []*leveetest.Listener{leveetest.Listen(), leveetest.Listen(), leveetest.Listen()}
		s := serve(t, &levee.Server{Handler: handler, MaxConns: 4}, listeners[0], listeners[1], listeners[2])
		var clients sync.WaitGroup
		for i := range 60 {
			c := dial(t, listeners[i%3])
			clients.Go(func() {
				if err := exchange(c, "hello"); err != nil {
					t.Error(err)
				}
				c.Close()
			})
		}
		clients.Wait()
		synctest.Wait()
		if most.Load() != 4 {
			t.Errorf("%d were served at once, want 4", most.Load())
		}
		checkStats(t, s.Stats(), 0, map[levee.CloseReason]int64{levee.ClientClosed: 60})
	})
}

func TestNegativeMaxConnsIsNoCap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: echoing, MaxConns: -1}, l)
		if err := exchange(dial(t, l), "hello"); err != nil {
			t.Fatal(err)
		}
		if n := s.Stats().MaxConns; n >= 0 {
			t.Errorf("Stats tells of a cap of %d", n)
		}
	})
}

// labelled is a listener whose type cannot be compared, nor be a map's key.
type labelled struct {
	net.Listener
	labels []string
}

func TestAnyListenerWillDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: answering}, labelled{l, []string{"a", "b"}})
		if err := exchange(dial(t, l), "hello\n"); err != nil {
			t.Fatal(err)
		}
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := l.Dial(t.Context()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("the listener is still open: %v", err)
		}
	})
}

// looking is a context that tells when somebody looks for its end.
type looking struct {
	context.Context
	looked func()
}

func (l looking) Done() <-chan struct{} {
	l.looked()
	return l.Context.Done()
}

func TestAListenerThatIsClosedBeforeServeLooksEndsItWithTheError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 20 { // of what has happened by then it could see any
			l, neighbour := leveetest.Listen(), leveetest.Listen()
			_, _ = l.Close(), neighbour.Close()
			s := &levee.Server{Handler: answering}
			if err := s.Serve(looking{t.Context(), synctest.Wait}, l, neighbour); !errors.Is(err, net.ErrClosed) {
				t.Fatalf("Serve returned %v", err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
