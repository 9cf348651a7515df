package attack_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/attack"
	"github.com/levee-net/levee/leveetest"
)

func run(t *testing.T, f attack.Flood) *attack.Report {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	report, err := f.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func TestAServerThatCopesHasHeld(t *testing.T) {
	leveetest.CheckLeaks(t)
	report := run(t, small(serve(t, echo), "hold", "resets"))
	if report.Suffered() || report.Protocol != "echo" || report.Idle.OK() != 1 {
		t.Errorf("%+v", report)
	}
	for _, r := range report.Results {
		if r.Tally.Attempts < 20 || r.During.RoundTrips.Tried < 20 || r.During.Connections.Tried < 5 || r.After.RoundTrips.Tried == 0 {
			t.Errorf("%s: %+v", r.Attack, r)
		}
	}
	if held := report.Results[0].Tally.Held; held != 20 {
		t.Errorf("hold has held %d of 20", held)
	}
}

// A server that serves one after the other is what the verdict is for.
func TestAServerThatServesOneAtATimeHasNotHeld(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(50 * time.Millisecond))
			_, _ = io.Copy(c, c)
			c.Close()
		}
	}()
	defer func() { l.Close(); <-done }()
	f := small(l.Addr().(*net.TCPAddr).AddrPort(), "hold")
	f.Floor = 10 * time.Millisecond
	report := run(t, f)
	if !report.Suffered() {
		t.Errorf("the probe did not notice: %+v", report.Results)
	}
	var table strings.Builder
	if err := report.WriteTable(&table); err != nil || !strings.Contains(table.String(), "did not hold") || !strings.Contains(table.String(), "hold: ") {
		t.Errorf("%v, and the table does not say so:\n%s", err, &table)
	}
}

func TestWhatAServerSpeaksIsFoundOut(t *testing.T) {
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	ca := leveetest.NewCA(t)
	secure := serve(t, echoInTLS(ca.ServerConfig("localhost")))
	overTLS := small(secure, "hold", "slow-hello")
	overTLS.TLS = ca.ClientConfig("localhost")
	for name, test := range map[string]struct {
		flood    attack.Flood
		protocol string
		skipped  string
	}{
		"http":        {small(netip.MustParseAddrPort(web.Listener.Addr().String()), "slow-hello"), "http", "the server does not speak TLS"},
		"echo":        {small(serve(t, echo), "slow-hello"), "echo", "the server does not speak TLS"},
		"echo in TLS": {overTLS, "echo", ""},
	} {
		report := run(t, test.flood)
		if report.Protocol != test.protocol || report.Results[len(report.Results)-1].Skipped != test.skipped || report.Suffered() {
			t.Errorf("%s: %+v", name, report)
		}
	}
}

func TestAServerThatSpeaksSomethingElseIsAskedWhatTheCallerKnows(t *testing.T) {
	target := serve(t, func(c *net.TCPConn) {
		request := make([]byte, 6)
		for {
			if _, err := io.ReadFull(c, request); err != nil || string(request) != "PING\r\n" {
				return
			}
			io.WriteString(c, "+PONG\r\n")
		}
	})
	f := small(target, "hold")
	if _, err := f.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "say what to send") {
		t.Errorf("it was attacked without a probe: %v", err)
	}
	f.Protocol = attack.Exchange([]byte("PING\r\n"), []byte("+PONG\r\n"))
	if report := run(t, f); report.Suffered() || report.Protocol != "exchange" {
		t.Errorf("%+v", report)
	}
	f.Protocol = attack.Exchange([]byte("PING\r\n"), []byte("+PANG\r\n"))
	if _, err := f.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another one") {
		t.Errorf("the wrong answer passed: %v", err)
	}
}

func TestTheProbeComesFromAnAddressOfItsOwn(t *testing.T) {
	sources := make(chan netip.Addr, 1000)
	target := serve(t, func(c *net.TCPConn) {
		select {
		case sources <- c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap():
		default:
		}
		echo(c)
	})
	report := run(t, small(target, "hold"))
	counts := map[netip.Addr]int{}
	for len(sources) > 0 {
		counts[<-sources]++
	}
	if len(report.Remarks) > 0 && strings.Contains(strings.Join(report.Remarks, " "), "same address") {
		t.Skip(report.Remarks)
	}
	if counts[netip.MustParseAddr("127.0.0.1")] != 20 || counts[netip.MustParseAddr("127.77.0.1")] == 0 || len(counts) != 2 {
		t.Errorf("connections by source: %v", counts)
	}
}

func TestOnlyLoopbackIsAttackedUnasked(t *testing.T) {
	for want, f := range map[string]attack.Flood{
		"nobody said that he owns it":     small(netip.MustParseAddrPort("192.0.2.1:7"), "hold"),
		"no target":                       small(netip.AddrPort{}, "hold"),
		"no attacks":                      small(netip.MustParseAddrPort("127.0.0.1:7")),
		"at most 15000":                   {Target: netip.MustParseAddrPort("127.0.0.1:7"), Attacks: attack.All(), Connections: 15_001},
		"duration of 11m0s: at most 10m":  {Target: netip.MustParseAddrPort("127.0.0.1:7"), Attacks: attack.All(), Duration: 11 * time.Minute},
		"at most 100000":                  {Target: netip.MustParseAddrPort("127.0.0.1:7"), Attacks: attack.All(), Rate: 1e6},
		"an IPv6 prefix of at most 48":    {Target: netip.MustParseAddrPort("127.0.0.1:7"), Attacks: attack.All(), Prefix: netip.MustParsePrefix("fd00::/64")},
		"::ffff:192.0.2.1 is not a loopb": {Target: netip.MustParseAddrPort("[::ffff:192.0.2.1]:7"), Attacks: attack.All()},
	} {
		if _, err := f.Run(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestAnInterruptedFloodSaysWhatThereIs(t *testing.T) {
	leveetest.CheckLeaks(t)
	f := small(serve(t, echo), "hold", "churn")
	f.Duration = time.Minute
	ctx, interrupt := context.WithCancel(t.Context())
	f.Progress = func(p attack.Progress) {
		if p.Tally.Held == 20 {
			interrupt()
		}
	}
	began := time.Now()
	report, err := f.Run(ctx)
	if err != nil || !report.Interrupted || len(report.Results) != 1 || !report.Results[0].CutShort || report.Results[0].Tally.Held != 20 {
		t.Errorf("%v, %+v", err, report)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestWhatIsNotGivenBackIsALeak(t *testing.T) {
	f := small(serve(t, echo), "hold")
	f.Recovery = 400 * time.Millisecond
	files := 100
	f.Vitals = func(context.Context) (attack.Vitals, error) {
		files += 100 // more whenever it is looked at
		return attack.Vitals{Files: files, Connections: -1, Goroutines: -1}, nil
	}
	r := run(t, f).Results[0]
	if got := strings.Join(r.Complaints, "\n"); !strings.Contains(got, "not as before after 400ms") || !strings.Contains(got, "open files instead of") || r.Recovered >= 0 {
		t.Errorf("%q, recovered %v", got, r.Recovered)
	}
}

func TestEverybodyBeginsWithAHeaderWhereThatIsWanted(t *testing.T) {
	target := serve(t, func(c *net.TCPConn) {
		in := bufio.NewReader(c)
		header, err := in.ReadString('\n')
		if err != nil {
			return
		}
		if want := fmt.Sprintf("PROXY TCP4 %s 127.0.0.1 %d %d\r\n", addr(c), c.RemoteAddr().(*net.TCPAddr).Port, c.LocalAddr().(*net.TCPAddr).Port); header != want {
			t.Errorf("the header is %q, want %q", header, want)
			return
		}
		_, _ = io.Copy(c, in)
	})
	f := small(target, "slow-line", "slow-header")
	f.ProxyHeader = true
	report := run(t, f)
	if report.Suffered() || report.Results[0].Tally.Held != 20 || report.Results[1].Tally.Held != 20 {
		t.Errorf("%+v", report.Results)
	}
}
