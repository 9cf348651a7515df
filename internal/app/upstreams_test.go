package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/upstream"
	"github.com/levee-net/levee/upstream/discover"
)

// A plan is a source that tells of servers at its time.
type plan []struct {
	after   time.Duration
	servers []upstream.Server
}

func (p plan) Run(ctx context.Context, update func([]upstream.Server)) error {
	for _, step := range p {
		select {
		case <-time.After(step.after):
			update(step.servers)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

func at(addresses ...string) (servers []upstream.Server) {
	for _, a := range addresses {
		servers = append(servers, upstream.Server{Name: a})
	}
	return servers
}

// backendOf returns a backend that learns of its servers from plans, and its log.
func backendOf(t *testing.T, plans ...plan) (*backend, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	cfg := &config.Upstream{Name: "db", Balance: "round_robin", SlowStart: 10 * time.Second, Health: config.Health{Interval: config.Off}}
	b, err := newBackend(cfg, slog.New(slog.NewTextHandler(&log, nil)), newUpstreamMetrics(prometheus.NewRegistry()), record{})
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range plans {
		l := newLookout(fmt.Sprint("source", i))
		l.source = p
		b.sources = append(b.sources, l)
	}
	return b, &log
}

// begin starts it until the test ends.
func (b *backend) begin(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	b.start(ctx, &running)
}

// knows returns the servers, and those in brackets that start slowly.
func (b *backend) knows() string {
	var words []string
	for _, s := range b.pool.Stats().Servers {
		if s.Weight < 1 {
			words = append(words, "("+s.Name+")")
		} else {
			words = append(words, s.Name)
		}
	}
	return strings.Join(words, " ")
}

func TestServersOfSeveralSourcesStartTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := backendOf(t, plan{{0, at("a:1")}}, plan{{500 * time.Millisecond, at("b:1")}}, plan{{firstAnswer + time.Second, at("c:1")}})
		began := time.Now()
		b.begin(t)
		if took := time.Since(began); took != firstAnswer {
			t.Errorf("it waited for %v", took)
		}
		if got := b.knows(); got != "a:1 b:1" {
			t.Errorf("at the start it knows %s", got)
		}
		time.Sleep(2 * time.Second) // virtual time
		if got := b.knows(); got != "a:1 b:1 (c:1)" {
			t.Errorf("later it knows %s", got)
		}
	})
}

func TestASourceThatIsMistakenSpoilsItsOwnServersAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		odd := at("d")
		b, log := backendOf(
			t,
			plan{{0, odd}, {time.Second, at("d:1")}},
			plan{{0, at("a:1")}, {2 * time.Second, odd}},
			plan{{0, at("b:1")}, {3 * time.Second, at("b:1", "c:1")}},
		)
		b.begin(t)
		synctest.Wait()
		if got := b.knows(); got != "a:1 b:1" && got != "a:1 (b:1)" && got != "(a:1) b:1" {
			t.Errorf("at the start it knows %s", got)
		}
		time.Sleep(time.Minute) // virtual time
		if got := b.knows(); got != "d:1 a:1 b:1 c:1" {
			t.Errorf("it knows %s", got)
		}
		for _, source := range []string{"source0", "source1"} {
			if want := `msg="servers left as they were" upstream=db where=` + source; strings.Count(log.String(), want) != 1 {
				t.Errorf("not once %s in\n%s", want, log)
			}
		}
	})
}

func TestOnlyCertainAbsenceIsAnAnswer(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{fmt.Errorf("look up db: %w", discover.ErrAbsent), true},
		{&fs.PathError{Op: "stat", Path: "/servers", Err: fs.ErrNotExist}, true},
		{errors.New("dial udp 10.0.0.53:53: network is unreachable"), false},
	} {
		b, _ := backendOf(t)
		l := newLookout("db")
		b.problem(l)(c.err)
		got := false
		select {
		case <-l.heard:
			got = true
		default:
		}
		if got != c.want {
			t.Errorf("%v is an answer: %t", c.err, got)
		}
	}
}

func TestTroubleWithASourceIsLoggedNowAndThenAndSaysWhatItMeans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, log := backendOf(t)
		l := newLookout("db")
		problem := b.problem(l)
		lines := func() (lines []string) {
			defer log.Reset()
			for line := range strings.Lines(log.String()) {
				_, line, _ = strings.Cut(strings.TrimSpace(line), " level=")
				lines = append(lines, line)
			}
			return lines
		}
		for port := range 100 {
			problem(fmt.Errorf("read udp 10.0.0.1:%d: i/o timeout", port))
		}
		if got := lines(); len(got) != 1 || got[0] != `WARN msg="servers cannot be found, trying again" upstream=db where=db err="read udp 10.0.0.1:0: i/o timeout"` {
			t.Errorf("logged %q", got)
		}
		time.Sleep(problemPause) // virtual time
		b.sources = append(b.sources, l)
		b.update(l, at("a:1"))
		lines()
		problem(errors.New("no answer"))
		if got := lines(); len(got) != 1 || got[0] != `WARN msg="servers may have changed unnoticed, trying again" upstream=db where=db err="no answer"` {
			t.Errorf("logged %q", got)
		}
	})
}

func TestASourceAddressOfAnotherMachineIsAWarningAtTheStart(t *testing.T) {
	b, log := backendOf(t)
	b.cfg.Dial.Source = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("127.0.0.1")}
	b.begin(t)
	const want = `msg="cannot connect from dial.source; is it an address of this machine?" upstream=db source=192.0.2.1 err=`
	if text := log.String(); !strings.Contains(text, want) || strings.Contains(text, "127.0.0.1") {
		t.Errorf("logged\n%s", text)
	}
}

// What pools have counted does not become less by a reload, which makes another pool of the name, and an upgrade behind it.
func TestCountsOfPoolsThatAreGoneGoOnInTheNextProcess(t *testing.T) {
	begin := func() *upstreamMetrics { return newUpstreamMetrics(prometheus.NewRegistry()) }
	counted := func(retries, sent int64) *upstream.Pool {
		t.Helper()
		p := &upstream.Pool{Name: "db"}
		state := fmt.Sprintf(`{"version":1,"state":{"counts":{"retries":%d},"servers":[{"name":"a:1","counts":{"sent":%d,"dials":5,"failures":{"refused":2}}},{"name":"gone:1","counts":{"sent":1}}]}}`, retries, sent)
		if err := p.Restore([]byte(state)); err != nil {
			t.Fatal(err)
		}
		if err := p.Update(at("a:1")); err != nil {
			t.Fatal(err)
		}
		return p
	}
	tells := func(m *upstreamMetrics, retries, sent, refused int64) {
		t.Helper()
		m.mu.Lock()
		defer m.mu.Unlock()
		s := m.statsLocked("db")
		if len(s.Servers) != 1 || s.Retries != retries || s.Servers[0].Sent != sent || s.Servers[0].Failures[upstream.Refused] != refused {
			t.Errorf("%+v", s)
		}
	}
	first := begin()
	gone, old, newest := counted(100, 1000), counted(10, 100), counted(1, 10)
	for _, p := range []*upstream.Pool{gone, old, newest} {
		first.watch("db", p)
	}
	first.unwatch("db", gone)
	tells(first, 111, 1110, 6)
	second := begin()
	handedOn := counted(1, 10) // which is for the pool itself
	second.watch("db", handedOn)
	for range 2 {
		inherits(t, second, first)
		tells(second, 111, 1110, 6)
	}
	first.unwatch("db", old) // its last connection has ended
	inherits(t, second, first)
	tells(second, 111, 1110, 6)
	second.watch("db", counted(2, 20)) // a reload
	second.unwatch("db", handedOn)
	third := begin()
	third.watch("db", counted(2, 20))
	inherits(t, third, second)
	tells(third, 113, 1130, 8)
	if err := third.Restore([]byte("?")); err == nil {
		t.Error("nonsense is taken")
	}
	tells(third, 113, 1130, 8)
}
