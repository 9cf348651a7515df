package overload

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// A course is senses of a test: what the loads are after a time.
type course struct {
	began time.Time
	loads func(at time.Duration) Loads
}

func (s course) look(now time.Time) Loads { return s.loads(now.Sub(s.began)) }

// A run is a controller at work, in virtual time.
type run struct {
	*Controller
	server  *levee.Server
	changes []State
	log     bytes.Buffer
}

// start runs a controller on that course until the test is over.
func start(t *testing.T, loads func(at time.Duration) Loads) *run {
	t.Helper()
	r := &run{server: new(levee.Server)}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	r.Controller = &Controller{
		Servers: []*levee.Server{r.server},
		Logger:  slog.New(slog.NewTextHandler(&r.log, nil)),
		Changed: func(s State) { r.changes = append(r.changes, s) },
		sense:   func(*Controller) senses { return course{time.Now(), loads} },
	}
	go func() { defer close(over); r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-over
		_ = r.server.Close()
	})
	return r
}

// pass has some time pass.
func pass(d time.Duration) {
	time.Sleep(d) // virtual time
	synctest.Wait()
}

func steps(changes []State) (words string) {
	for _, s := range changes {
		words += s.Pressure.String() + " "
	}
	return words
}

func TestPressureComesAtOnceAndGoesALevelAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, func(at time.Duration) (l Loads) {
			if at > 3*time.Second && at < 6*time.Second {
				l[Memory] = 0.95
			}
			return l
		})
		pass(3*time.Second + 150*time.Millisecond)
		if got := r.server.Stats().Pressure; got != levee.ShedIdle {
			t.Errorf("the pressure is %v", got)
		}
		if s := r.State(); s.Cause != Memory || s.Pressure != levee.ShedIdle || s.Loads[Memory] != 0.95 || time.Since(s.Since) > 200*time.Millisecond {
			t.Errorf("the state is %+v", s)
		}
		pass(3*time.Second + 200*time.Millisecond) // 350 ms after the load's end
		if got := r.server.Stats().Pressure; got != levee.ShedIdle {
			t.Errorf("the pressure is %v before its time", got)
		}
		pass(700 * time.Millisecond)
		if got := r.server.Stats().Pressure; got != levee.NoPressure {
			t.Errorf("the pressure is %v, 1.05 s after the end", got)
		}
		const want = "shed_idle pause_reads refuse_new no_linger short_idle none "
		if got := steps(r.changes); got != want {
			t.Errorf("it went %q, want %q", got, want)
		}
	})
}

func TestALoadThatSwingsAroundAThresholdDoesNotHaveThePressureFlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, func(at time.Duration) (l Loads) {
			l[Memory] = 0.78
			if at/(300*time.Millisecond)%2 == 0 {
				l[Memory] = 0.81
			}
			return l
		})
		pass(time.Minute)
		if got := steps(r.changes); got != "refuse_new " {
			t.Errorf("it went %q", got)
		}
	})
}

// Each input has the pressures that relieve it, and no others.
func TestInputsCauseThePressuresOfTheTable(t *testing.T) {
	for _, tt := range []struct {
		input Input
		load  float64
		want  levee.Pressure
	}{
		{Memory, 0.69, levee.NoPressure},
		{Memory, 0.70, levee.ShortIdle},
		{Memory, 0.76, levee.NoLinger},
		{Memory, 0.80, levee.RefuseNew},
		{Memory, 0.85, levee.PauseReads},
		{Memory, 3, levee.ShedIdle},
		{Files, 0.79, levee.NoPressure},
		{Files, 0.80, levee.ShortIdle},
		{Files, 0.85, levee.NoLinger},
		{Files, 0.97, levee.RefuseNew},
		{Files, 0.98, levee.ShedIdle},
		{AcceptQueue, 9, levee.NoPressure},
		{Arriving, 9, levee.NoPressure},
		{Handshakes, 9, levee.NoPressure},
		{Scheduler, 9, levee.NoPressure},
	} {
		l := ladder{calm: time.Second}
		var loads Loads
		loads[tt.input] = tt.load
		l.look(time.Now(), loads)
		if l.level != tt.want {
			t.Errorf("%v at %v: %v, want %v", tt.input, tt.load, l.level, tt.want)
		}
	}
}

func TestConnectionsAreShedOnlyWhileTheLoadIsThere(t *testing.T) {
	l := ladder{calm: time.Second}
	now := time.Now()
	for i, tt := range []struct {
		load float64
		want bool
	}{{0.5, false}, {0.93, true}, {0.92, true}, {0.9, false}, {0.93, true}, {0.5, false}} {
		now = now.Add(100 * time.Millisecond)
		if got := l.look(now, Loads{Memory: tt.load}); got != tt.want {
			t.Errorf("look %d, at %v: pressed again: %t", i, tt.load, got)
		}
	}
}

// The share of newcomers that is turned away may change at every look.
func TestNobodyIsShedBecauseTheShareOfNewcomersChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const come = 2 * time.Second
		r := start(t, func(at time.Duration) (l Loads) {
			if at < come {
				return l
			}
			l[Memory] = 0.9
			if at < come+100*time.Millisecond { // one look
				l[Memory] = 0.93
			}
			l[Scheduler] = 1 + float64(at/(100*time.Millisecond)%3)
			return l
		})
		r.server.Handler = levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
			_, err := c.Read(make([]byte, 1))
			return err
		})
		l := leveetest.Listen()
		go func() { _ = r.server.Serve(context.Background(), l) }() // ends with the server
		const all = 40
		for range all {
			c, err := l.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
		pass(come + 2*time.Second)
		if got := r.server.Stats().Active; got < all*9/10 || got == all {
			t.Errorf("%d of %d connections are left after one look at which some had to go", got, all)
		}
	})
}

func TestAPressureIsLoggedOnceAndAtABoundedRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, func(at time.Duration) (l Loads) {
			if at < 10*time.Second && at/(200*time.Millisecond)%2 == 0 {
				l[Handshakes] = 4 // comes and goes
			}
			if at > 4*time.Second && at < 5*time.Second {
				l[Files] = 0.99
			}
			return l
		})
		pass(20 * time.Second)
		lines := strings.Count(r.log.String(), "\n")
		if lines < 3 || lines > 14 {
			t.Errorf("%d lines in 20 s:\n%s", lines, &r.log)
		}
		if !strings.Contains(r.log.String(), "level=shed_idle cause=files load=0.99") {
			t.Errorf("the log has no word of the worst:\n%s", &r.log)
		}
		last := strings.TrimSpace(r.log.String())
		if last = last[strings.LastIndex(last, "\n")+1:]; !strings.Contains(last, "level=none") || !strings.Contains(last, "turned_away=0") {
			t.Errorf("the last line is %s", last)
		}
	})
}

func TestNoPressureIsLeftWhenTheControllerEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(levee.Server)
		defer server.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		c := &Controller{Servers: []*levee.Server{server}, Logger: slog.New(slog.DiscardHandler), sense: func(*Controller) senses {
			return course{time.Now(), func(time.Duration) Loads { return Loads{Memory: 1, Scheduler: 3} }}
		}}
		go func() {
			pass(time.Second)
			if s := server.Stats(); s.Pressure != levee.ShedIdle {
				t.Errorf("the pressure is %v", s.Pressure)
			}
		}()
		c.Run(ctx)
		if got := server.Stats().Pressure; got != levee.NoPressure {
			t.Errorf("%v is left", got)
		}
	})
}

// A crowd is a model of a server to which newcomers come, as a ration sees it.
type crowd struct {
	capacity float64 // newcomers a second that it can serve
	refusal  float64 // what it takes to turn one away, as part of that
	limit    float64 // of the queue
	queue    float64
}

// tick has a tenth of a second pass with so many newcomers a second. It returns how many were served, and
// how long the last of those in the queue will have waited.
func (c *crowd) tick(rate, turnedAway float64) (served, delay float64) {
	const tick = 0.1
	each := (1-turnedAway)/c.capacity + turnedAway*c.refusal/c.capacity // processor time of one
	taken := min(c.queue+rate*tick, tick/each)
	c.queue = min(c.limit, c.queue+rate*tick-taken)
	return taken * (1 - turnedAway), c.queue * each
}

// After a second at three times what can be served: 90 % of what can is, nobody waits for long, and all of that is
// over within two seconds of its end.
func TestWhenThreeTimesTooManyComeThoseWhoAreLetInAreServed(t *testing.T) {
	c := crowd{capacity: 2000, refusal: 0.02, limit: 4096}
	r := ration{share: 1}
	var goodput, worst float64
	for i := range 100 {
		served, delay := c.tick(3*c.capacity, r.turnedAway())
		if i >= 10 {
			goodput += served
			worst = max(worst, delay)
		}
		r.look(Loads{AcceptQueue: delay / 0.5})
	}
	if goodput /= 9 * c.capacity; goodput < 0.9 {
		t.Errorf("%.0f %% of what it can do", 100*goodput)
	}
	if worst > 1.5 {
		t.Errorf("a newcomer waits for %.0f ms", 1000*worst)
	}
	for i := range 20 {
		served, delay := c.tick(0.8*c.capacity, r.turnedAway())
		r.look(Loads{AcceptQueue: delay / 0.5})
		if i == 19 && served < 0.99*0.8*c.capacity/10 {
			t.Errorf("after 2 s of peace %.0f of %.0f are served, %.0f %% turned away", 10*served, 0.8*c.capacity, 100*r.turnedAway())
		}
	}
}

func TestServersThatComeArePressedAndThoseThatGoAreRelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, func(time.Duration) Loads { return Loads{Memory: 0.78, Arriving: 4} })
		pass(time.Second)
		comes := new(levee.Server)
		defer comes.Close()
		r.Serve(comes)
		pass(time.Second)
		if got := comes.Stats().Pressure; got != levee.NoLinger {
			t.Errorf("the one that has come is under %v", got)
		}
		if got := r.server.Stats().Pressure; got != levee.NoPressure {
			t.Errorf("the one that has gone is under %v", got)
		}
		r.Serve(comes, r.server)
		pass(time.Second)
		if got := r.server.Stats().Pressure; got != levee.NoLinger {
			t.Errorf("the one that is back is under %v", got)
		}
	})
}
