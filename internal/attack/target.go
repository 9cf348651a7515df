package attack

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"
)

// A target is the server, and what was found out about it.
type target struct {
	addr        netip.AddrPort
	host        string      // as an HTTP client calls it
	tls         *tls.Config // of the well-behaved client; nil is plaintext
	forTLS      *tls.Config // of attackers; nil if the server speaks none
	suite       uint16      // of a handshake without special wishes
	proxyHeader bool
	protocol    Protocol
	http        bool // it speaks it, where requests are
	source      netip.Addr
	prefix      netip.Prefix
	vitals      Meter
	remarks     []string
}

var errStrange = errors.New("it neither echoes nor speaks HTTP: say what to send, and what to expect")

// reconnoitre looks the target over.
func (f *Flood) reconnoitre(ctx context.Context) (*target, error) {
	t := &target{addr: f.Target, tls: f.TLS, proxyHeader: f.ProxyHeader, protocol: f.Protocol, prefix: f.Prefix, vitals: f.Vitals}
	t.host = cmp.Or(f.ServerName, f.Target.String())
	err := t.reach(ctx, f.ProbeSource)
	if err != nil {
		return nil, err
	}
	if t.vitals == nil {
		t.vitals = processesOf(t.addr)
	}
	if _, err := t.vitals(ctx); err != nil {
		t.remarks = append(t.remarks, "what the server spends is not known: "+err.Error())
	}
	t.forTLS = f.attackersTLS()
	if t.suite, err = t.agreedSuite(ctx); err != nil {
		t.forTLS = nil
	}
	return t, t.listen(ctx)
}

// reach connects, and settles where the well-behaved client connects from.
func (t *target) reach(ctx context.Context, source netip.Addr) error {
	t.source = source
	if !source.IsValid() && t.addr.Addr().Is4() && t.addr.Addr().IsLoopback() {
		t.source = netip.AddrFrom4([4]byte{127, 77, 0, 1})
	}
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	c, err := t.visit(ctx, t.source)
	if errors.Is(err, syscall.EADDRNOTAVAIL) && !source.IsValid() { // macOS has only 127.0.0.1
		t.source = netip.Addr{}
		c, err = t.visit(ctx, t.source)
	}
	if err != nil {
		return err
	}
	c.Close()
	if !t.source.IsValid() {
		t.remarks = append(t.remarks, "the well-behaved client and the attackers come from the same address: a limit per client cannot tell them apart")
	}
	return nil
}

// attackersTLS verifies nothing: attackers do not care whom they attack.
func (f *Flood) attackersTLS() *tls.Config {
	c := &tls.Config{}
	if f.TLS != nil {
		c = f.TLS.Clone()
	}
	c.InsecureSkipVerify, c.VerifyConnection, c.VerifyPeerCertificate = true, nil, nil
	c.ServerName = cmp.Or(f.ServerName, c.ServerName, "localhost")
	c.ClientSessionCache = nil // each handshake is a full one
	return c
}

// listen has one round trip, by the protocol that was asked for or that is found to
// be understood, and tries whether HTTP is spoken too.
func (t *target) listen(ctx context.Context) error {
	http, echo := HTTP(t.host, "/"), Echo()
	if t.protocol.answer == nil {
		t.protocol = echo
		if t.try(ctx) != nil {
			t.protocol = http
			if t.try(ctx) != nil {
				return errStrange
			}
		}
	} else if err := t.try(ctx); err != nil {
		return fmt.Errorf("no round trip: %w", err)
	}
	t.http = t.protocol.name == http.name
	if !t.http {
		other := *t
		other.protocol = http
		t.http = other.try(ctx) == nil
	}
	return nil
}

func (t *target) try(ctx context.Context) error {
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	var c client
	defer c.leave()
	return c.converse(ctx, t)
}

// visit connects as a well-behaved client does.
func (t *target) visit(ctx context.Context, source netip.Addr) (net.Conn, error) {
	if !source.IsValid() {
		source = t.source
	}
	raw, err := t.begin(ctx, source, 0)
	if err != nil || t.tls == nil {
		return raw, err
	}
	c := tls.Client(raw, t.tls)
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	return c, nil
}

// begin connects and sends what has to come first.
func (t *target) begin(ctx context.Context, source netip.Addr, receive int) (net.Conn, error) {
	raw, err := t.dial(ctx, source, receive)
	if err != nil || !t.proxyHeader {
		return raw, err
	}
	if _, err := raw.Write(proxyHeader(raw)); err != nil {
		raw.Close()
		return nil, err
	}
	return raw, nil
}

// dial connects from an address, if it is one, with a receive buffer of so many
// bytes, if it is above 0.
func (t *target) dial(ctx context.Context, source netip.Addr, receive int) (*net.TCPConn, error) {
	d := net.Dialer{Control: prepareSocket(source, receive), KeepAlive: -1}
	d.SetMultipathTCP(false)
	if source.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	}
	c, err := d.DialContext(ctx, "tcp", t.addr.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// proxyHeader is one of version 1, which says what is true.
func proxyHeader(c net.Conn) []byte {
	from, to := addrPort(c.LocalAddr()), addrPort(c.RemoteAddr())
	family := "TCP4"
	if from.Addr().Is6() {
		family = "TCP6"
	}
	return fmt.Appendf(nil, "PROXY %s %s %s %d %d\r\n", family, from.Addr(), to.Addr(), from.Port(), to.Port())
}

func addrPort(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

var longAgo = time.Unix(1, 0)

// endWith has whatever waits for the connection fail when ctx ends, until what it
// returns is called.
func endWith(ctx context.Context, c net.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = c.SetDeadline(longAgo) })
}

// measure asks for the server's vitals.
func (t *target) measure(ctx context.Context) (v Vitals, known bool) {
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	v, err := t.vitals(ctx)
	return v, err == nil
}

// helloOf is a ClientHello, in its record.
func helloOf(config *tls.Config) []byte {
	var sink helloSink
	_ = tls.Client(&sink, config).Handshake() // fails when it waits for the answer
	return slices.Clip(sink.hello)
}

// A helloSink is a connection that keeps what it is sent and has no answer.
type helloSink struct {
	net.Conn
	hello []byte
}

func (s *helloSink) Write(p []byte) (int, error) {
	s.hello = append(s.hello, p...)
	return len(p), nil
}

func (s *helloSink) Read([]byte) (int, error)    { return 0, errors.ErrUnsupported }
func (s *helloSink) SetDeadline(time.Time) error { return nil }
func (s *helloSink) Close() error                { return nil }
