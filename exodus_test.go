package levee_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// idlers are so many clients of s that have said something and wait, the first for the longest time.
func idlers(t *testing.T, l *leveetest.Listener, many int, apart time.Duration) []net.Conn {
	t.Helper()
	all := make([]net.Conn, many)
	for i := range all {
		all[i] = dial(t, l)
		if err := exchange(all[i], "hello\n"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(apart) // virtual time
	}
	synctest.Wait()
	return all
}

// partings returns after which time each of the connections is told of the end.
func partings(all []net.Conn) []time.Duration {
	began, took := time.Now(), make([]time.Duration, len(all))
	var watching sync.WaitGroup
	for i, c := range all {
		watching.Go(func() {
			_, _ = io.Copy(io.Discard, c)
			took[i] = time.Since(began)
		})
	}
	watching.Wait()
	return took
}

func TestConnectionsAreAskedToLeaveOneAfterTheOtherIfTheyAreMany(t *testing.T) {
	for name, test := range map[string]struct {
		clients       int
		spread, limit time.Duration // no limit: the context has no deadline
		want          time.Duration
	}{
		"a thousand are few":              {1000, 0, 25 * time.Second, 0},
		"and so is one":                   {1, 0, 0, 0},
		"a millisecond each, beyond that": {1600, 0, 25 * time.Second, 600 * time.Millisecond},
		"not for too long":                {1600, 0, time.Second, 200 * time.Millisecond},
		"as long as it is to take":        {100, 5 * time.Second, 25 * time.Second, 5 * time.Second},
		"half of the time at most":        {100, time.Hour, 2 * time.Second, time.Second},
		"or of the server's own":          {100, time.Hour, 0, 12500 * time.Millisecond},
		"off":                             {1600, -1, 25 * time.Second, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := leveetest.Network{Backlog: -1}.Listen()
				s := serve(t, &levee.Server{Handler: answering, DrainSpread: test.spread}, l)
				all := idlers(t, l, test.clients, 0)
				ctx := t.Context()
				if test.limit > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, test.limit)
					defer cancel()
				}
				began := time.Now()
				done := make(chan error, 1)
				go func() { done <- s.Shutdown(ctx) }()
				took := partings(all)
				if err := <-done; err != nil {
					t.Error(err)
				}
				if whole := time.Since(began); whole > test.want+slack || whole < test.want*9/10 {
					t.Errorf("Shutdown took %v, want about %v", whole, test.want)
				}
				if test.want == 0 {
					return
				}
				for _, part := range []int{1, 2, 3} { // of four
					gone := 0
					for _, d := range took {
						if d <= test.want*time.Duration(part)/4 {
							gone++
						}
					}
					if want := test.clients * part / 4; gone < want*9/10-2 || gone > want*11/10+2 {
						t.Errorf("%d had left after %d quarters of the time, want about %d", gone, part, want)
					}
				}
			})
		})
	}
}

func TestWhoHasBeenSilentForTheLongestTimeIsAskedToLeaveFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const clients = 50
		l := leveetest.Listen()
		work := make(chan struct{})
		s := serve(t, &levee.Server{DrainSpread: 10 * time.Second, Handler: handle(func(_ context.Context, c *levee.Conn) error {
			line := make([]byte, 64)
			for c.Next() {
				n, err := c.Read(line)
				if err != nil {
					return err
				}
				if string(line[:n]) == "work\n" {
					<-work
				}
				if _, err := c.Write(line[:n]); err != nil {
					return err
				}
			}
			return nil
		})}, l)
		busy := dial(t, l)
		if _, err := io.WriteString(busy, "work\n"); err != nil {
			t.Fatal(err)
		}
		all := idlers(t, l, clients, time.Second)
		if err := exchange(all[0], "not any more\n"); err != nil { // the first is the last now
			t.Fatal(err)
		}
		synctest.Wait()
		done := make(chan error, 1)
		go func() { done <- s.Shutdown(t.Context()) }()
		took := partings(all)
		for i := range clients - 2 {
			if took[i+2] < took[i+1] {
				t.Errorf("number %d left after %v, and number %d, which was silent for longer, after %v", i+2, took[i+2], i+1, took[i+1])
			}
		}
		if took[0] < took[clients-1] {
			t.Errorf("who has just said something left after %v, and others after %v", took[0], took[clients-1])
		}
		close(work)
		if err := expect(busy, "work\n"); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestADrainThatIsSpreadEndsWithTheLastConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: answering, DrainSpread: time.Hour}, l)
		all := idlers(t, l, 10, 0)
		began := time.Now()
		time.AfterFunc(time.Second, func() {
			for _, c := range all {
				c.Close()
			}
		})
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > time.Second+slack {
			t.Errorf("Shutdown took %v", took)
		}
		r := s.DrainReport()
		if r.Gone+r.Drained != len(all) || r.Gone < len(all)-2 || r.Cut != 0 || r.Open != 0 {
			t.Errorf("the report is %+v", r)
		}
	})
}

func TestCloseEndsADrainThatIsSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: answering, DrainSpread: time.Hour}, l)
		idlers(t, l, 10, 0)
		done := make(chan error, 1)
		began := time.Now()
		go func() { done <- s.Shutdown(t.Context()) }()
		synctest.Wait()
		if err := s.Close(); err == nil {
			t.Error("nobody was cut")
		}
		if err := <-done; err == nil {
			t.Error("Shutdown knows of nobody who was cut")
		}
		if took := time.Since(began); took > slack {
			t.Errorf("Shutdown took %v", took)
		}
	})
}

func TestADrainReportSaysHowEachHasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := serve(t, &levee.Server{Handler: handle(func(ctx context.Context, c *levee.Conn) error {
			line := make([]byte, 64)
			for c.Next() {
				n, err := c.Read(line)
				if err != nil {
					return err
				}
				if string(line[:n]) == "work\n" {
					<-ctx.Done()
					return ctx.Err()
				}
				if _, err := c.Write(line[:n]); err != nil {
					return err
				}
			}
			return nil
		})}, l)
		idlers(t, l, 1, 0)[0].Close() // who leaves before does not count
		const idle = 3                // who leave when they are asked to
		idlers(t, l, idle, 0)
		for range 2 { // who goes, and who stays
			if _, err := io.WriteString(dial(t, l), "work\n"); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if r := s.DrainReport(); r != (levee.DrainReport{}) {
			t.Errorf("before the drain: %+v", r)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- s.Shutdown(ctx) }()
		time.Sleep(slack) // virtual time
		if r := s.DrainReport(); r != (levee.DrainReport{Drained: idle, Open: 2}) {
			t.Errorf("during the drain: %+v", r)
		}
		s.Conns()[0].Kill(errors.New("enough"))
		if err := <-done; !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if r := s.DrainReport(); r != (levee.DrainReport{Drained: idle, Gone: 1, Cut: 1}) {
			t.Errorf("after the drain: %+v", r)
		}
	})
}

// A full house is one of many, some at work, some idle and some still before the door.
const active, idle, parked = 1000, 200, 50

// Nobody is cut who can end in time, and nobody waits for who cannot.
func TestAFullHouseLeavesInTime(t *testing.T) {
	most := 200 * time.Millisecond
	if underRaceDetector() { // it takes ten times the processor
		most = 2 * time.Second
	}
	for name, test := range map[string]struct {
		limit   time.Duration
		isStuck bool
	}{
		"in their own time": {20 * time.Second, false},
		"at the limit":      {2 * time.Second, true},
	} {
		t.Run(name, func(t *testing.T) {
			leveetest.CheckLeaks(t)
			late := time.Hour
			for try := 0; try < 3 && late > most; try++ { // the machine may be busy with something else
				late = min(late, emptyFullHouse(t, test.limit, test.isStuck))
			}
			if late > most {
				t.Errorf("it is over %v late", late)
			}
		})
	}
}

// emptyFullHouse returns how much later the drain is over than the last connection, or than the limit for those who are stuck.
func emptyFullHouse(t *testing.T, limit time.Duration, isStuck bool) (late time.Duration) {
	l := listenTCP(t)
	last := make(chan time.Time, active+idle+parked)
	s := serve(t, &levee.Server{
		MaxConns: active + idle, // the others wait in the kernel's queue
		Trace:    &levee.Trace{Closed: func(*levee.Conn, levee.End) { last <- time.Now() }},
		Handler: handle(func(ctx context.Context, c *levee.Conn) error {
			line := make([]byte, 64)
			for c.Next() {
				n, err := c.Read(line)
				if err != nil {
					return err
				}
				if string(line[:n]) == "work\n" {
					select {
					case <-time.After(time.Duration(c.ID()%100) * 10 * time.Millisecond):
					case <-ctx.Done():
					}
					if isStuck {
						<-ctx.Done()
					}
				}
				if _, err := c.Write(line[:n]); err != nil {
					return err
				}
			}
			return nil
		}),
	}, l)
	var clients sync.WaitGroup
	answered := make(chan error, active+parked)
	for range idle {
		c := dialTCP(t, l)
		if err := exchange(c, "hello\n"); err != nil {
			t.Fatal(err)
		}
		clients.Go(func() { _, _ = io.Copy(io.Discard, c) })
	}
	for i := range active + parked {
		c := dialTCP(t, l)
		request := "work\n"
		if i >= active {
			request = "parked\n"
		}
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		clients.Go(func() { answered <- expect(c, request) })
	}
	for s.Stats().QueueLength < parked && s.Stats().Active < active+idle {
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	began := time.Now()
	err := s.Shutdown(ctx)
	over := time.Now()
	clients.Wait()
	failed := 0
	for range active + parked {
		if <-answered != nil {
			failed++
		}
	}
	if isStuck {
		if took := over.Sub(began); took < limit {
			t.Errorf("it took %v, the limit was %v", took, limit)
		}
		if cut, ok := errors.AsType[*levee.DrainError](err); !ok || cut.Cut < active {
			t.Errorf("%v", err)
		}
		return over.Sub(began.Add(limit))
	}
	if err != nil || failed > 0 {
		t.Errorf("%v, and %d were not answered", err, failed)
	}
	var end time.Time
	for len(last) > 0 {
		end = <-last
	}
	if r := s.DrainReport(); r.Cut != 0 || r.Open != 0 || r.Drained+r.Gone != active+idle+parked {
		t.Errorf("the report is %+v", r)
	}
	return over.Sub(end)
}
