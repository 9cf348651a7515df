package leveetest

import (
	"context"
	"crypto/tls"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/attack"
)

// AbuseOptions say how [Abuse] goes about it. The zero value is good for a server
// that echoes or speaks HTTP.
type AbuseOptions struct {
	// Send is a message that the server understands, and Expect its answer, to the byte.
	// Without them the server has to echo what it is sent, or to speak HTTP/1.1.
	Send, Expect []byte
	// TLS is a client's configuration, such as [CA.ClientConfig] makes, of a server that
	// wants TLS. The server name that attackers ask for is that of it.
	TLS *tls.Config
	// ProxyHeader has connections begin with a PROXY protocol header.
	ProxyHeader bool

	// Attacks are the names of those to make, as `levee flood --list` has them. None is
	// all that are any on this server: most of them are without TLS, without HTTP or
	// without a PROXY protocol header, and are then left out.
	Attacks []string
	// Duration is how long each attack lasts. 0 is 250 ms: all of them take ten seconds or
	// so. To see whether a server's deadlines bite, it has to be longer than those.
	Duration time.Duration
	// Connections is how many an attack holds at most. 0 is 200.
	Connections int
	// MaxP99 is what 99 of 100 answers to the well-behaved client may take while an
	// attack goes on. 0 is 1 s, or three times what they take without attacks if that is
	// more: server, attackers and client share the test's process, and its machine.
	MaxP99 time.Duration
}

const (
	abuseDuration    = 250 * time.Millisecond
	abuseConnections = 200
	abuseRate        = 2000 // connections a second
	abuseInterval    = 10 * time.Millisecond
	abuseMaxP99      = time.Second
)

var errOwnProcess = errors.New("it is the test's own process")

// Abuse attacks the server at addr, a loopback address such as a listener has, while a
// well-behaved client makes round trips with it: floods of connections and handshakes,
// clients that are slow in every phase of a connection, garbage, lengths that promise
// too much, requests whose answers nobody reads. The test fails, with a table of what
// happened, if any of the client's round trips do, or take too long.
//
//	func TestServerStandsAbuse(t *testing.T) {
//		l, err := net.Listen("tcp", "127.0.0.1:0")
//		...
//		go srv.Serve(ctx, l)
//		leveetest.Abuse(t, l.Addr().String(), leveetest.AbuseOptions{})
//	}
//
// The attackers connect from 127.0.0.1, the client from 127.77.0.1 where the system
// has that address (Linux does): limits per client may turn away the one and not the
// other. It needs real sockets, and time that is real.
func Abuse(t testing.TB, addr string, options AbuseOptions) {
	t.Helper()
	f := attack.Flood{
		Target: loopbackAddr(t, addr), TLS: options.TLS, ProxyHeader: options.ProxyHeader, Attacks: attacksNamed(t, options.Attacks),
		Duration: options.Duration, Connections: options.Connections, Rate: abuseRate, Interval: abuseInterval, Floor: options.MaxP99 / 3,
		Vitals: func(context.Context) (attack.Vitals, error) { return attack.Vitals{}, errOwnProcess },
	}
	if f.Duration == 0 {
		f.Duration = abuseDuration
	}
	if f.Connections == 0 {
		f.Connections = abuseConnections
	}
	if f.Floor == 0 {
		f.Floor = abuseMaxP99 / 3
	}
	if len(options.Send) > 0 {
		f.Protocol = attack.Exchange(options.Send, options.Expect)
	}
	report, err := f.Run(t.Context())
	if err != nil {
		t.Fatalf("no attack on %s: %v", addr, err)
	}
	var table strings.Builder
	if err := report.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	if report.Suffered() {
		t.Errorf("a well-behaved client suffered:\n%s", &table)
	} else {
		t.Logf("\n%s", &table)
	}
}

// loopbackAddr also takes what a listener on all addresses says of itself.
func loopbackAddr(t testing.TB, addr string) netip.AddrPort {
	t.Helper()
	target, err := netip.ParseAddrPort(addr)
	if err != nil {
		t.Fatalf("Abuse: %v", err)
	}
	switch ip := target.Addr(); {
	case !ip.IsUnspecified():
	case ip.Is4():
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), target.Port())
	default:
		return netip.AddrPortFrom(netip.IPv6Loopback(), target.Port())
	}
	return target
}

func attacksNamed(t testing.TB, names []string) (attacks []attack.Attack) {
	t.Helper()
	if len(names) == 0 {
		return attack.All()
	}
	for _, name := range names {
		a, ok := attack.Named(name)
		if !ok {
			t.Fatalf("Abuse: there is no attack %q", name)
		}
		attacks = append(attacks, a)
	}
	return attacks
}
