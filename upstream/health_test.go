package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A diary is what hooks were told.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, fmt.Sprintf(format, args...))
}

func (d *diary) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.lines, "; ")
}

func (d *diary) trace() *Trace {
	return &Trace{
		ServerUp:   func(server string) { d.note("%s up", server) },
		ServerDown: func(server string, err error) { d.note("%s down: %v", server, err) },
	}
}

func TestAServerIsDownAfterThreeBadChecksAndUpAfterTwoGoodOnes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where, news := newTown("a", "b"), &diary{}
		p := found(t, where, &Pool{Trace: news.trace()})
		run(t, p)
		advance(time.Minute)
		if n := where["a"].dialled(); n < 11 || n > 14 {
			t.Errorf("there were %d checks in a minute", n)
		}
		where["a"].become(refuses)
		advance(3 * time.Second) // Interval ± 10 % may have been left of
		for range 4 {
			advance(time.Second)
			if stats(t, p, "a").State() == "down" {
				break
			}
		}
		advance(4 * time.Second)
		if got := news.String(); got != "a down: connection refused" {
			t.Fatalf("the news was %s", got)
		}
		if s := stats(t, p, "a"); s.State() != "down" || s.HealthError == nil || s.Checked.IsZero() {
			t.Errorf("stats are %+v", s)
		}
		if got := picks(t, p); got != "b" {
			t.Errorf("%s get connections", got)
		}
		where["a"].become(accepts)
		advance(8 * time.Second)
		if got := news.String(); got != "a down: connection refused; a up" {
			t.Errorf("the news was %s", got)
		}
		if s := stats(t, p, "a"); s.Weight >= 1 || s.HealthError != nil {
			t.Errorf("it came back as %+v", s)
		}
	})
}

func TestAServerInTransitionIsCheckedFaster(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where, news := newTown("a", "b"), &diary{}
		where["a"].become(refuses)
		p := found(t, where, &Pool{Trace: news.trace()})
		run(t, p)
		advance(2900 * time.Millisecond) // at most 0.5 s until the first check, and 1.1 s until the second and the third
		if where["a"].dialled() != 3 || news.String() == "" {
			t.Errorf("after %d checks the news is %q", where["a"].dialled(), news)
		}
		advance(3300 * time.Millisecond) // the next one comes 4.5 s after the third, and that took at least 1.8 s
		if where["a"].dialled() != 3 {
			t.Errorf("a server that is down for good was checked %d times", where["a"].dialled())
		}
	})
}

func TestOneBadCheckIsForgotten(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where, news := newTown("a"), &diary{}
		p := found(t, where, &Pool{Trace: news.trace(), Health: Health{Probe: everyThird()}})
		run(t, p)
		advance(10 * time.Minute)
		if got := news.String(); got != "" {
			t.Errorf("the news was %s", got)
		}
	})
}

// everyThird is a probe that is well only every third time.
func everyThird() func(context.Context, net.Conn) error {
	n := 0
	return func(context.Context, net.Conn) error {
		if n++; n%3 == 0 {
			return nil
		}
		return errors.New("not now")
	}
}

func TestAProbeAsksTheServer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where, news := newTown("a", "b"), &diary{}
		where["b"].become(greets)
		p := found(t, where, &Pool{Trace: news.trace(), Health: Health{
			First: []byte("LOCAL"),
			Probe: func(ctx context.Context, conn net.Conn) error {
				until, ok := ctx.Deadline()
				if left := time.Until(until); !ok || left > 2*time.Second {
					t.Errorf("the probe has %v", left)
				}
				conn.SetDeadline(until)
				_, err := conn.Read(make([]byte, 1))
				return err
			},
		}})
		run(t, p)
		advance(time.Minute)
		if got := news.String(); got != "a down: no answer within 2s: i/o timeout" {
			t.Errorf("the news was %s", got)
		}
		where["a"].mu.Lock()
		defer where["a"].mu.Unlock()
		for _, far := range where["a"].ends {
			b := make([]byte, 10)
			n, _ := far.Read(b)
			if _, err := far.Read(b[n:]); string(b[:n]) != "LOCAL" || err == nil {
				t.Errorf("a check sent %q, and was not closed: %v", b[:n], err)
			}
		}
	})
}

func TestChecksAreNotMadeInStep(t *testing.T) {
	bubble(t, func(t *testing.T) {
		names := make([]string, 50)
		for i := range names {
			names[i] = fmt.Sprint("s", i)
		}
		where := newTown(names...)
		p := found(t, where, &Pool{})
		run(t, p)
		advance(100 * time.Millisecond)
		early := 0
		for _, h := range where {
			early += h.dialled()
		}
		if early == 0 || early == 50 {
			t.Errorf("%d of 50 first checks came within 100 ms", early)
		}
		advance(400 * time.Millisecond)
		for name, h := range where {
			if h.dialled() != 1 {
				t.Errorf("%s was checked %d times in half a second", name, h.dialled())
			}
		}
	})
}

func TestServersThatComeAreCheckedAndThoseThatLeaveAreNot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b")
		p := found(t, where, &Pool{}, where.server("a"))
		run(t, p)
		advance(time.Second)
		p.Update([]Server{where.server("b")})
		before := where["a"].dialled()
		advance(time.Minute)
		if after := where["a"].dialled(); after != before || where["b"].dialled() < 10 {
			t.Errorf("a was checked %d times more, b %d times", after-before, where["b"].dialled())
		}
	})
}

func TestWithoutRunServersCountAsHealthy(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b")
		p := found(t, where, &Pool{Health: Health{Fall: 1}})
		where["a"].become(refuses)
		ctx, stop := context.WithCancel(t.Context())
		returned := make(chan error)
		go func() { returned <- p.Run(ctx) }()
		advance(time.Second)
		if got := stats(t, p, "a").State(); got != "down" {
			t.Errorf("it is %s", got)
		}
		stop()
		if err := <-returned; err != nil {
			t.Error(err)
		}
		if got := stats(t, p, "a").State(); got != "up" {
			t.Errorf("it is %s", got)
		}
	})
}

func TestThisMachinesTroubleIsNoVerdict(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a")
		where["a"].failWith(dialError(localErrors[0]))
		p := found(t, where, &Pool{})
		run(t, p)
		advance(time.Minute)
		if s := stats(t, p, "a"); s.State() != "up" || s.HealthError == nil {
			t.Errorf("stats are %+v", s)
		}
	})
}

func TestChecksMayBeOff(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a")
		p := found(t, where, &Pool{Health: Health{Interval: -1}})
		run(t, p)
		advance(time.Minute)
		if n := where["a"].dialled(); n != 0 {
			t.Errorf("there were %d checks", n)
		}
	})
}

func TestRunEndsInTheMiddleOfAHangingCheck(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a")
		where["a"].become(hangs)
		p := found(t, where, &Pool{})
		ctx, stop := context.WithCancel(t.Context())
		returned := make(chan error)
		go func() { returned <- p.Run(ctx) }()
		advance(time.Second)
		began := time.Now()
		stop()
		if err := <-returned; err != nil || time.Since(began) > 0 {
			t.Errorf("it ended after %v with %v", time.Since(began), err)
		}
		synctest.Wait()
	})
}
