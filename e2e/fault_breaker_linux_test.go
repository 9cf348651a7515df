package e2e

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// What the tests of breakers set, as configuration and for counting with.
const (
	quick = `, balance: round_robin, health: {interval: off}, slow_start: off, early_close: 200ms` +
		`, dial: {timeout: 300ms, total_timeout: 1s}, breaker: {failures: 5, open: 500ms, max_open: 1s, probes: 1}`
	threshold    = 5
	totalTimeout = time.Second
	earlyClose   = 200 * time.Millisecond
	firstOpen    = 500 * time.Millisecond
	maxOpen      = time.Second

	slack = time.Second // for a machine that has other things to do
)

// probesWithin is how often a breaker that opens at the beginning of a time lets one connection
// through, if all of them fail.
func probesWithin(d time.Duration) int {
	return 1 + int(math.Ceil(max(0, d-firstOpen).Seconds()/maxOpen.Seconds()))
}

// A flaky is a server that can be made to misbehave, on another machine.
type flaky struct {
	*remote
	address string
	serves  atomic.Pointer[func(net.Conn)]
}

func newFlaky(t *testing.T) *flaky {
	t.Helper()
	f := &flaky{remote: newRemote(t)}
	f.does(echo)
	f.address = serve(t, f.listen(), func(c net.Conn) { (*f.serves.Load())(c) })
	return f
}

// does says what the server does with connections from now on.
func (f *flaky) does(handle func(net.Conn)) { f.serves.Store(&handle) }

// A crowd is a few clients, each of which makes one connection after the other, for an echo.
type crowd struct {
	address        string
	leave          chan struct{}
	all            sync.WaitGroup
	served, failed atomic.Int64
	slowest        atomic.Int64
}

const (
	crowdSize  = 4
	crowdPause = 5 * time.Millisecond // of each: what is looked at is faults, not load
)

func newCrowd(address string) *crowd {
	c := &crowd{address: address, leave: make(chan struct{})}
	for range crowdSize {
		c.all.Go(c.come)
	}
	return c
}

func (c *crowd) come() {
	tick := time.NewTicker(crowdPause)
	defer tick.Stop()
	for {
		select {
		case <-c.leave:
			return
		case <-tick.C:
		}
		began := time.Now()
		if echoes(c.address) == nil {
			c.served.Add(1)
		} else {
			c.failed.Add(1)
		}
		for took := int64(time.Since(began)); ; {
			if before := c.slowest.Load(); before >= took || c.slowest.CompareAndSwap(before, took) {
				break
			}
		}
	}
}

// goes ends it.
func (c *crowd) goes() {
	close(c.leave)
	c.all.Wait()
}

// A bystander is a connection to a server that is well, in use all the time.
type bystander struct {
	t     *testing.T
	chat  *chat
	leave chan struct{}
	left  chan error
}

func newBystander(t *testing.T, address string) *bystander {
	t.Helper()
	b := &bystander{t, chatsOn(t, address, 1)[0], make(chan struct{}), make(chan error, 1)}
	go b.stay() // ends with leave
	return b
}

func (b *bystander) stay() {
	tick := time.NewTicker(crowdPause)
	defer tick.Stop()
	for {
		select {
		case <-b.leave:
			b.left <- nil
			return
		case <-tick.C:
		}
		if err := b.chat.round(); err != nil {
			b.left <- err
			return
		}
	}
}

func (b *bystander) hasNoticedNothing() {
	b.t.Helper()
	close(b.leave)
	if err := <-b.left; err != nil {
		b.t.Errorf("the bystander %v", err)
	}
}

// silentThenCloses says nothing, and leaves early.
func silentThenCloses(c net.Conn) {
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	_, _ = io.Copy(io.Discard, c)
}

// resetsInMidRequest takes a part of what comes, and answers with a reset.
func resetsInMidRequest(c net.Conn) {
	_, _ = io.ReadFull(c, make([]byte, 2))
	reset(c)
}

// resetsInMidAnswer has begun to answer when it resets.
func resetsInMidAnswer(c net.Conn) {
	_, _ = io.CopyN(c, c, 2)
	reset(c)
}

func TestABreakerOpensWithinItsThresholdAndClosesWithinTwoSecondsOfHealing(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		fault func(*flaky)
		lost  bool // a connection that meets the fault cannot be retried: the client's bytes have gone there
	}{
		{"refused", func(f *flaky) { f.firewall(refuses) }, false},
		{"black hole", func(f *flaky) { f.firewall(swallows) }, false},
		{"reset in mid-request", func(f *flaky) { f.does(resetsInMidRequest) }, true},
		{"silent, then closed early", func(f *flaky) { f.does(silentThenCloses) }, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newFlaky(t)
			good := serve(t, listen(t), echo)
			p := start(t, "serve", "-c", ways(t, way{"main", "", servers(good, f.address) + quick}, way{"other", "", servers(good)}))
			address := p.addressOf(0)
			other := newBystander(t, p.addressOf(1))
			for range 10 {
				if err := echoes(address); err != nil {
					t.Fatal(err)
				}
			}
			if s := p.scrape(); s.failures(f.address) != 0 || s.dials(f.address, "ok") != 5 {
				t.Fatalf("%v failures, %v dials of a server that is well", s.failures(f.address), s.dials(f.address, "ok"))
			}

			<-time.After(2 * earlyClose) // nothing says any more that the server is well
			test.fault(f)
			lost := 0
			seenClosed := time.Now()
			for p.scrape().breaker(f.address) == breakerClosed {
				seenClosed = time.Now()
				before := p.scrape().failures(f.address)
				if before > threshold {
					t.Fatalf("%v failures, and it is still closed", before)
				}
				if echoes(address) == nil {
					continue
				}
				lost++
				eventually(t, "what a client has lost counts", func() bool { return p.scrape().failures(f.address) > before })
			}
			if n := p.scrape().failures(f.address); n != threshold {
				t.Errorf("it opens after %v failures", n)
			}
			if want := lostOr0(test.lost, threshold); lost != want {
				t.Errorf("%d clients had lost their connection when it opened, want %d", lost, want)
			}

			// While it is open, a failure is a probe. They cannot use up the retry budget,
			// which allows 30 and a fifth of all clients.
			clients := newCrowd(address)
			<-time.After(2 * time.Second) // that is how long the fault lasts
			n := p.scrape().failures(f.address)
			probes := probesWithin(time.Since(seenClosed))
			if n > float64(threshold+probes) {
				t.Errorf("%v failures, want no more than %d and %d probes", n, threshold, probes)
			}
			f.firewall(lets)
			f.does(echo)
			healed := time.Now()
			eventually(t, "the breaker closes", func() bool { return p.scrape().breaker(f.address) == breakerClosed })
			if took := time.Since(healed); took > 2*time.Second {
				t.Errorf("it closes %v after the server is well", took)
			}
			before := p.scrape().dials(f.address, "ok")
			eventually(t, "the server gets its share", func() bool { return p.scrape().dials(f.address, "ok") > before+10 })
			clients.goes()
			if failed := int(clients.failed.Load()); failed > lostOr0(test.lost, probes) {
				t.Errorf("%d clients were not served, and %d were, want no more than %d", failed, clients.served.Load(), lostOr0(test.lost, probes))
			}
			if slowest := time.Duration(clients.slowest.Load()); slowest > totalTimeout+slack {
				t.Errorf("a client took %v", slowest)
			}
			other.hasNoticedNothing()
		})
	}
}

func lostOr0(lost bool, n int) int {
	if lost {
		return n
	}
	return 0
}

func TestAServerThatFlapsHurtsNoClient(t *testing.T) {
	t.Parallel()
	const period, flaps = 300 * time.Millisecond, 5
	f := newFlaky(t)
	good := serve(t, listen(t), echo)
	p := start(t, "serve", "-c", ways(t, way{"main", "", servers(good, f.address) + quick}))
	clients := newCrowd(p.addressOf(0))
	flap := time.NewTicker(period)
	defer flap.Stop()
	for range flaps {
		f.firewall(refuses)
		<-flap.C
		f.firewall(lets)
		<-flap.C
	}
	healed := time.Now()
	eventually(t, "the breaker closes", func() bool { return p.scrape().breaker(f.address) == breakerClosed })
	if took := time.Since(healed); took > 2*time.Second {
		t.Errorf("it closes %v after the server is well", took)
	}
	clients.goes()
	s := p.scrape()
	// Each time it opens, those of the crowd that are on their way there fail too.
	if n := s.failures(f.address); n < threshold || n > flaps*(threshold+crowdSize-1) {
		t.Errorf("%v failures", n)
	}
	if failed := clients.failed.Load(); failed != 0 {
		t.Errorf("%d clients were not served, and %d were", failed, clients.served.Load())
	}
	p.logged("breaker open")
}

// hasNotTripped reports what breakers have noticed that they should not have.
func hasNotTripped(t *testing.T, p *process, server string) {
	t.Helper()
	if s := p.scrape(); s.breaker(server) != breakerClosed || s.failures(server) != 0 {
		t.Errorf("state %v, %v failures", s.breaker(server), s.failures(server))
	}
	if strings.Contains(p.stderr.String(), `"breaker open"`) {
		t.Error("its breaker has been open")
	}
}

// toxic makes a proxy to an address that does something to what comes from there.
func toxic(t *testing.T, to, toxics string) (address string) {
	t.Helper()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	proxy := toxiproxy.NewProxy(server, t.Name(), "127.0.0.1:0", to)
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Stop)
	for kind := range strings.Lines(toxics) {
		if _, err := proxy.Toxics.AddToxicJson(strings.NewReader(kind)); err != nil {
			t.Fatal(err)
		}
	}
	return proxy.Listen
}

func TestAServerAtHalfSpeedIsNotLeftAlone(t *testing.T) {
	t.Parallel()
	const (
		size  = 256 << 10
		speed = 1 << 20 // bytes a second: a fourth of a second for each
	)
	content := strings.Repeat("0123456789abcdef", size/16)
	sends := func(c net.Conn) {
		_, _ = io.ReadFull(c, make([]byte, 1))
		_, _ = io.WriteString(c, content)
	}
	good := serve(t, listen(t), sends)
	slow := toxic(t, good, fmt.Sprintf(`{"type": "bandwidth", "attributes": {"rate": %d}}`, speed>>10))
	p := start(t, "serve", "-c", ways(t, way{"main", "", servers(good, slow) + quick}))
	var all sync.WaitGroup
	for range 40 {
		all.Go(func() {
			c, err := net.Dial("tcp", p.addressOf(0))
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(2 * patience))
			_, _ = c.Write([]byte{1})
			if got, err := io.ReadAll(c); string(got) != content || err != nil {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	all.Wait()
	hasNotTripped(t, p, slow)
	if s := p.scrape(); s.dials(slow, "ok") != 20 || s.dials(good, "ok") != 20 {
		t.Errorf("%v to the slow one, %v to the other", s.dials(slow, "ok"), s.dials(good, "ok"))
	}
}

// A server that has begun to answer can be reached and is doing its work: what it resets
// then is between it and its clients.
func TestAServerThatResetsInMidAnswerIsNotLeftAlone(t *testing.T) {
	t.Parallel()
	f := newFlaky(t)
	f.does(resetsInMidAnswer)
	good := serve(t, listen(t), echo)
	p := start(t, "serve", "-c", ways(t, way{"main", "", servers(good, f.address) + quick}))
	const clients = 40
	lost := 0
	for range clients {
		if echoes(p.addressOf(0)) != nil {
			lost++
		}
	}
	if lost != clients/2 {
		t.Errorf("%d of %d are lost", lost, clients)
	}
	eventually(t, "all are counted", func() bool { return p.scrape().closed("upstream_reset") == clients/2 })
	hasNotTripped(t, p, f.address)
}

func TestATenthOfThePacketsLostHurtsNoClient(t *testing.T) {
	t.Parallel()
	f := newFlaky(t)
	f.loses(10)
	good := serve(t, listen(t), echo)
	p := start(t, "serve", "-c", ways(t, way{"main", "", servers(good, f.address) + quick}))
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			if err := echoes(p.addressOf(0)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	s := p.scrape()
	if n := s.failures(f.address); n != s.dials(f.address, "timed_out") {
		t.Errorf("%v failures, %v of them by time", n, s.dials(f.address, "timed_out"))
	}
	// The first packet is sent again after a second, so one dial in five takes too long. Five in a row are rare.
	if opened := strings.Contains(p.stderr.String(), `"breaker open"`); opened && s.failures(f.address) < threshold {
		t.Errorf("the breaker has been open after %v failures", s.failures(f.address))
	}
}

func TestAThousandClientsThatResetOpenNoBreaker(t *testing.T) {
	t.Parallel()
	one, two := serve(t, listen(t), echo), serve(t, listen(t), echo)
	p := start(t, "serve", "-c", ways(t, way{"main", "", servers(one, two) + quick}))
	address := p.addressOf(0)
	const clients = 1000
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for n := i; n < clients; n += 8 {
				c, err := net.Dial("tcp", address)
				if err != nil {
					t.Error(err)
					continue
				}
				switch n / 8 % 4 {
				case 0: // at once
				case 1:
					_, _ = io.WriteString(c, "a request")
				case 2:
					_, _ = io.WriteString(c, "a request")
					_, _ = c.Read(make([]byte, 1))
				case 3: // with more on its way than fits
					_ = c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
					_, _ = c.Write(make([]byte, 8<<20))
				}
				reset(c)
			}
		})
	}
	all.Wait()
	eventually(t, "all have gone", func() bool {
		s := p.scrape()
		return s.of("levee_connections_accepted_total") == clients && s.of("levee_connections_active") == 0
	})
	hasNotTripped(t, p, one)
	hasNotTripped(t, p, two)
	if err := echoes(address); err != nil {
		t.Error(err)
	}
}

func TestWithAllServersDownEveryClientIsClosedInTime(t *testing.T) {
	t.Parallel()
	const clients = 100
	f := newFlaky(t)
	refusing := listen(t)
	refusing.Close()
	f.firewall(swallows)
	p := start(t, "serve", "-c", ways(t, way{"main", "", servers(refusing.Addr().String(), f.address) + quick}))
	address := p.addressOf(0)
	turnedAway := func() {
		var all sync.WaitGroup
		for range clients {
			all.Go(func() {
				began := time.Now()
				err := echoes(address)
				if err != io.EOF && !isReset(err) {
					t.Errorf("it ends with %v", err)
				}
				if took := time.Since(began); took > totalTimeout+slack {
					t.Errorf("it takes %v", took)
				}
			})
		}
		all.Wait()
	}
	turnedAway()
	eventually(t, "all are counted as upstream_unavailable", func() bool { return p.scrape().closed("upstream_unavailable") == clients })
	turnedAway() // with both breakers open
	eventually(t, "the others too", func() bool { return p.scrape().closed("upstream_unavailable") == 2*clients })
	if s := p.scrape(); s.of("levee_connections_active") != 0 || s[`levee_upstream_unavailable_total{upstream="main"}`] != 2*clients {
		t.Errorf("%v active, %v unavailable", s.of("levee_connections_active"), s[`levee_upstream_unavailable_total{upstream="main"}`])
	}
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// refusesGarbage closes on clients that do not speak as it wants.
func refusesGarbage(c net.Conn) {
	first := make([]byte, 1)
	if _, err := io.ReadFull(c, first); err == nil && first[0] != '!' {
		_, _ = c.Write(first)
		echo(c)
	}
}

func TestClientsThatSendGarbageOpenNoBreaker(t *testing.T) {
	t.Parallel()
	server := serve(t, listen(t), refusesGarbage)
	p := start(t, "serve", "-c", ways(t, way{"main", "", servers(server) + quick}))
	clients := newCrowd(p.addressOf(0))
	eventually(t, "some are served", func() bool { return clients.served.Load() > 10 })
	for range 10 * threshold {
		c := dial(t, p.addressOf(0))
		if _, err := io.WriteString(c, "!"); err != nil {
			t.Error(err)
		}
		if got, err := io.ReadAll(c); len(got) > 0 || err != nil && !isReset(err) {
			t.Errorf("garbage was answered by %q, %v", got, err)
		}
		c.Close()
	}
	clients.goes()
	if failed := clients.failed.Load(); failed > 0 {
		t.Errorf("%d clients were not served", failed)
	}
	if strings.Contains(p.stderr.String(), `"breaker open"`) {
		t.Error("the breaker has been open")
	}
}
