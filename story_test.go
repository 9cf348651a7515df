package levee_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// phasesOf returns the words of the phases that a story has, in order.
func phasesOf(m levee.Moments, end time.Duration) (words []string) {
	for _, s := range m.Spans(nil, end) {
		words = append(words, s.Phase.String())
	}
	return words
}

func TestAStoryTellsWhichPhasesTookHowLong(t *testing.T) {
	const s = time.Second
	for _, test := range []struct {
		name string
		levee.Moments
		end  time.Duration
		want string
	}{
		{"all", levee.Moments{1 * s, 2 * s, 3 * s, 5 * s, 8 * s, 9 * s, 11 * s, 14 * s, 30 * s}, 50 * s, "proxy_header 0+1, sniff 1+1, handshake 3+2, route 5+3, dial 9+2, first_byte 11+3, flow 14+16, drain 30+20"},
		{"silent from the start", levee.Moments{}, 10 * s, "route 0+10"},
		{"silent in its handshake", levee.Moments{HandshakeBegun: s}, 10 * s, "handshake 1+9"},
		{"no route", levee.Moments{Sniffed: s}, 3 * s, "sniff 0+1, route 1+2"},
		{"no upstream", levee.Moments{Routed: s, DialBegun: 2 * s}, 5 * s, "route 0+1, dial 2+3"},
		{"an upstream that says nothing", levee.Moments{Routed: s, DialBegun: s, DialDone: 2 * s}, 5 * s, "route 0+1, dial 1+1, first_byte 2+3"},
		{"a handler that writes", levee.Moments{Routed: s, FirstByte: 2 * s}, 5 * s, "route 0+1, first_byte 1+1, flow 2+3"},
		{"asked to leave while it arrives", levee.Moments{Draining: s}, 5 * s, "route 0+5, drain 1+4"},
		{"TLS begun by its handler", levee.Moments{Routed: 1 * s, FirstByte: 2 * s, HandshakeBegun: 3 * s, HandshakeDone: 4 * s}, 5 * s, "handshake 3+1, route 0+1, first_byte 1+1, flow 2+3"},
		{"a greeting before the dial", levee.Moments{Routed: 1 * s, FirstByte: 2 * s, DialBegun: 3 * s, DialDone: 4 * s}, 6 * s, "route 0+1, dial 3+1, first_byte 1+1, flow 2+4"},
	} {
		var got []string
		for _, span := range test.Spans(nil, test.end) {
			got = append(got, fmt.Sprintf("%v %d+%d", span.Phase, span.At/s, span.Took/s))
		}
		if got := strings.Join(got, ", "); got != test.want {
			t.Errorf("%s: %s\nwant %s", test.name, got, test.want)
		}
	}
}

func TestEveryPhaseHasAWordOfItsOwn(t *testing.T) {
	seen := map[string]bool{"none": true}
	for _, p := range levee.Phases() {
		if word := p.String(); word == "" || seen[word] {
			t.Errorf("phase %d is called %q", p, word)
		} else {
			seen[word] = true
		}
	}
	if got := levee.Phase(0).String() + levee.Phase(200).String(); got != "nonenone" {
		t.Error(got)
	}
}

func TestAMomentIsExactForHalfAnHourAndKeepsForWeeks(t *testing.T) {
	for _, test := range []struct{ in, want time.Duration }{
		{0, time.Microsecond}, // it did happen
		{1500, time.Microsecond},
		{35*time.Minute + 7*time.Microsecond, 35*time.Minute + 7*time.Microsecond},
		{36*time.Minute + 1500*time.Microsecond, 36*time.Minute + time.Millisecond},
		{20 * 24 * time.Hour, 20 * 24 * time.Hour},
		{365 * 24 * time.Hour, (1<<31 - 1) * time.Millisecond},
	} {
		if got := levee.ThroughMoment(test.in); got != test.want {
			t.Errorf("%v becomes %v, want %v", test.in, got, test.want)
		}
	}
}

// told collects the stories of connections at their end.
func told(srv *levee.Server) <-chan levee.Story {
	stories := make(chan levee.Story, 100)
	srv.Trace = levee.Traces(srv.Trace, &levee.Trace{Closed: func(c *levee.Conn, _ levee.End) { stories <- c.Story() }})
	return stories
}

func TestAStepperTellsItsStoryOnEveryEngine(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		srv := &levee.Server{Handler: &lines{}, Trace: &levee.Trace{Serving: func(c *levee.Conn, _ levee.Handler) { c.SetRoute("lines") }}}
		stories := told(srv)
		s := e.serve(t, srv)
		client, c := s.greet()
		began := c.Story()
		c.Drain(nil)
		wantEOF(t, client)
		got := receive(t, stories)
		want := []string{"route", "first_byte", "flow", "drain"}
		if e.routed {
			want = slices.Insert(want, 0, "sniff")
		}
		if e.tls {
			want = slices.Insert(want, 0, "handshake")
		}
		if words := phasesOf(got.Moments, time.Hour); !slices.Equal(words, want) {
			t.Errorf("phases %v, want %v: %+v", words, want, got.Moments)
		}
		engine := "goroutine"
		if e.onLoop() {
			engine = "loop"
		}
		if got.Route != "lines" || got.Engine != engine || (got.TLSVersion != 0) != e.tls || e.tls && (got.ServerName != "localhost" || got.TLSName() != "TLS 1.3") {
			t.Errorf("%+v", got)
		}
		if began.Draining != 0 || began.FirstByte != got.FirstByte || began.Routed != got.Routed {
			t.Errorf("while it lived: %+v, at its end %+v", began.Moments, got.Moments)
		}
		inOrder(t, got.Moments)
	})
}

// inOrder checks that what is set goes up.
func inOrder(t *testing.T, m levee.Moments) {
	t.Helper()
	last, v := time.Duration(0), reflect.ValueOf(m)
	for i := range v.NumField() {
		at := v.Field(i).Interface().(time.Duration)
		if at != 0 && at < last {
			t.Errorf("%s is before what comes before it: %+v", v.Type().Field(i).Name, m)
		}
		last = max(last, at)
	}
}

func TestAJoinedConnectionTellsItsStoryOnEveryEngine(t *testing.T) {
	target := &levee.Target{Upstream: "db", Server: "db-1"}
	for _, up := range upstreams {
		t.Run(up.name, func(t *testing.T) {
			onEveryEngine(t, func(t *testing.T, e engine) {
				srv := &levee.Server{}
				stories := told(srv)
				s := e.join(t, srv, up.delayed())
				c := s.meet()
				c.conn.SetTarget(target, 3)
				if m := c.conn.Moments(); m.FirstByte != 0 {
					t.Errorf("a first byte at %v, before there was one", m.FirstByte)
				}
				send(t, c.far, "hello")
				want(t, c.near, "hello")
				c.near.Close()
				c.far.Close()
				got := receive(t, stories)
				if got.Upstream != "db" || got.Server != "db-1" || got.Tries != 3 {
					t.Errorf("%+v", got)
				}
				words := phasesOf(got.Moments, time.Hour)
				if last := words[len(words)-4:]; !slices.Equal(last, []string{"route", "dial", "first_byte", "flow"}) {
					t.Errorf("phases %v", words)
				}
				if took := got.DialDone - got.DialBegun; took < dialDelay || took > longest {
					t.Errorf("the dial took %v", took)
				}
				inOrder(t, got.Moments)
			})
		})
	}
}

const dialDelay = 5 * time.Millisecond

// delayed is up with a dial that takes its time.
func (up upstreamKind) delayed() upstreamKind {
	start := up.start
	up.start = func(t testing.TB) (net.Listener, dialer) {
		l, dial := start(t)
		return l, func(ctx context.Context) (net.Conn, error) {
			<-time.After(dialDelay)
			return dial(ctx)
		}
	}
	return up
}

func TestAStoryOfAConnectionWithoutUpstreamEndsInItsDial(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		srv := &levee.Server{}
		stories := told(srv)
		nobody := tcpUpstream
		nobody.start = func(t testing.TB) (net.Listener, dialer) {
			return listenTCP(t), func(context.Context) (net.Conn, error) { return nil, errors.New("nobody is there") }
		}
		c := e.join(t, srv, nobody).dial()
		_, _ = c.Write([]byte("x")) // for those who are served by their first byte
		wantEnd(t, c)
		if words := phasesOf(receive(t, stories).Moments, time.Hour); words[len(words)-1] != "dial" {
			t.Errorf("phases %v", words)
		}
	})
}

func TestAStoryKnowsItsProxyHeaderAndDoesNotMixPhases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := leveetest.NewCA(t)
		srv := &levee.Server{
			Handler: answering, TLSConfig: ca.ServerConfig("localhost"), AllowPlaintext: true,
			ProxyFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		}
		stories := told(srv)
		l := leveetest.Listen()
		serve(t, srv, l)
		raw := dial(t, l)
		time.Sleep(time.Second) // virtual time
		io.WriteString(raw, "PROXY TCP4 192.0.2.1 192.0.2.2 1001 443\r\n")
		time.Sleep(2 * time.Second) // virtual time
		c := tls.Client(raw, ca.ClientConfig("localhost"))
		if err := exchange(c, "hello\n"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(4 * time.Second) // virtual time
		c.Close()
		got := <-stories
		if !slices.Equal(phasesOf(got.Moments, time.Hour), []string{"proxy_header", "sniff", "handshake", "route", "first_byte", "flow"}) {
			t.Errorf("phases %v", got.Spans(nil, time.Hour))
		}
		if got.ProxyHeader != time.Second || got.Sniffed != 3*time.Second {
			t.Errorf("%+v", got.Moments)
		}
	})
}

func TestAConnectionIsOfTheRouteThatLetItIn(t *testing.T) {
	srv := &levee.Server{Handler: &lines{}, Route: "old"}
	first := levee.BetweenEngines(srv)
	if _, err := srv.Reconfigure(&levee.Server{Handler: &lines{}, Route: "new"}); err != nil {
		t.Fatal(err)
	}
	second := levee.BetweenEngines(srv)
	if a, b := first.Route(), second.Route(); a != "old" || b != "new" {
		t.Errorf("%q and %q", a, b)
	}
	second.SetRoute("a router's")
	if got := second.Story().Route; got != "a router's" {
		t.Errorf("a router says %q", got)
	}
}

func TestNamesOfRoutesAreBounded(t *testing.T) {
	srv := &levee.Server{}
	c := levee.BetweenEngines(srv)
	if got := c.Route(); got != "" {
		t.Errorf("without a route: %q", got)
	}
	for i := range 2000 {
		name := fmt.Sprintf("route %d", i)
		c.SetRoute(name)
		want := name
		if i >= 1000 {
			want = "other"
		}
		if got := c.Route(); got != want {
			t.Fatalf("%q becomes %q, want %q", name, got, want)
		}
	}
	c.SetRoute("route 7")
	if got := c.Route(); got != "route 7" {
		t.Errorf("a name that was known became %q", got)
	}
	c.SetRoute("")
	if got := c.Route(); got != "" {
		t.Errorf("taken away: %q", got)
	}
}

func TestAStorysCostIsNotFelt(t *testing.T) {
	c := levee.BetweenEngines(&levee.Server{})
	target := &levee.Target{}
	c.SetRoute("a")
	for name, f := range map[string]func(){
		"Moments": func() { c.Moments() },
		"Spans": func() {
			m := c.Moments()
			var room [8]levee.Span
			m.Spans(room[:0], time.Hour)
		},
		"Story":     func() { c.Story() },
		"SetRoute":  func() { c.SetRoute("a") },
		"SetTarget": func() { c.SetTarget(target, 3) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

func BenchmarkStory(b *testing.B) {
	c := levee.BetweenEngines(&levee.Server{})
	b.Run("a moment", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			levee.ReachAgain(c)
		}
	})
	b.Run("SetRoute", func(b *testing.B) {
		for b.Loop() {
			c.SetRoute("a")
		}
	})
	b.Run("Story", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c.Story()
		}
	})
}

func TestTheKernelIsAskedOfThoseThatTheTraceChooses(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells of a connection")
	}
	onEveryEngine(t, func(t *testing.T, e engine) {
		for _, how := range []string{"client", "close", "kill", "drain", "reset"} {
			var asked atomic.Int64
			srv := &levee.Server{Handler: &lines{}, Trace: &levee.Trace{Sample: func(*levee.Conn) bool { return asked.Add(1) > 0 }}}
			s := e.serve(t, srv)
			client, c := s.greet()
			live, err := c.TCPInfo()
			if tcp := e.network == "tcp"; tcp && (err != nil || live.RTT <= 0) || !tcp && !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("while it lives: %+v, %v", live, err)
			}
			switch how {
			case "client":
				client.Close()
			case "close":
				send(t, client, "hangup\n")
			case "kill":
				c.Kill(nil)
			case "drain":
				c.Drain(nil)
			case "reset":
				if e.network != "tcp" {
					client.Close()
				} else {
					resetByClient(t, client)
				}
			}
			end := receive(t, s.ends)
			if e.network != "tcp" {
				if end.TCP != nil || asked.Load() != 0 {
					t.Errorf("%s: %+v, asked %d times", how, end.TCP, asked.Load())
				}
				continue
			}
			if end.TCP == nil || end.TCP.RTT <= 0 || end.TCP.RTT > time.Second || asked.Load() != 1 {
				t.Errorf("%s: %+v, asked %d times", how, end.TCP, asked.Load())
			}
			if _, err := c.TCPInfo(); err == nil {
				t.Errorf("%s: the kernel tells of a connection that is over", how)
			}
		}
	})
}

func TestTheKernelIsAskedOfJoinedConnections(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells of a connection")
	}
	onEveryEngine(t, func(t *testing.T, e engine) {
		if e.network != "tcp" {
			return
		}
		for _, byFar := range []bool{false, true} {
			srv := &levee.Server{Trace: &levee.Trace{Sample: func(*levee.Conn) bool { return true }}}
			s := e.join(t, srv, tcpUpstream)
			c := s.meet()
			if byFar {
				resetByClient(t, c.far)
			} else {
				resetByClient(t, c.near)
			}
			if end := receive(t, s.over); end.TCP == nil || end.TCP.RTT <= 0 {
				t.Errorf("reset by the upstream: %t: %+v, %v", byFar, end.TCP, end.Reason)
			}
		}
	})
}

func TestAPanicInSampleHurtsNobody(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		if e.network != "tcp" {
			return
		}
		s := e.serve(t, &levee.Server{Handler: &lines{}, Trace: &levee.Trace{Sample: func(*levee.Conn) bool { panic("bang") }}})
		for range 2 {
			client, _ := s.greet()
			client.Close()
			if end := receive(t, s.ends); end.TCP != nil {
				t.Error(end.TCP)
			}
		}
		if n := s.Stats().Panics; n != 2 {
			t.Errorf("%d panics", n)
		}
	})
}

func TestStatsTellWhenALoopIsLate(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("there are event loops on Linux only")
	}
	const busy = 30 * time.Millisecond
	s := engines[0].serve(t, &levee.Server{StepBudget: -1, Handler: &lines{commands: map[string]command{
		"burn": func(_ *levee.Conn, _ string, out []byte) ([]byte, error) {
			<-time.After(busy)
			return append(out, "done\n"...), nil
		},
	}}})
	var clients []peer
	for range 2 * runtime.GOMAXPROCS(0) {
		c, _ := s.greet()
		clients = append(clients, c)
	}
	for late := time.Now().Add(longest); s.Stats().LoopLag < busy/2; { // until a loop has been kept from one by another
		for _, c := range clients {
			send(t, c, "burn\n")
		}
		for _, c := range clients {
			want(t, c, "done\n")
		}
		if time.Now().After(late) {
			t.Fatal("no loop is ever late")
		}
	}
	for range 2 { // who asks does not take it from the next
		if lag := s.Stats().LoopLag; lag < busy/2 {
			t.Errorf("a loop is said to be late by %v", lag)
		}
	}
}
