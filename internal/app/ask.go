package app

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/certs"
	"github.com/levee-net/levee/certs/acme"
	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/route"
)

// An answer is what became of a connection in memory.
type answer struct {
	route  int    // -1 if there is none
	terms  *terms // what TLS ended by; nil if it did not
	sealed bool   // what came was TLS, whether or not it ended here
	hungry bool   // more would have been read than the client had to say
	alpn   string
	leaf   *x509.Certificate // the server's

	refused error // nil if it was served
	reason  levee.CloseReason
}

// ask has a server like the listener's, with the router that it has, decide on a connection in memory. It is
// different in two things: routes note that they were chosen instead of serving, and a client's certificate
// is believed, of whichever authority: what would be asked of it is told, and not tested.
func (g *generation) ask(ctx context.Context, q query) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	l := &g.cfg.Listeners[q.listener]
	identity, err := newIdentity(q.client)
	if err != nil {
		return answer{}, err
	}
	like, original := g.secured[q.listener].believing(identity)
	a := answer{route: -1}
	client, server := memory(q)
	chosen := func(i int) levee.Handler {
		return levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
			a.route, a.hungry = i, server.asked()
			if b, err := c.Peek(1); c.TLS() == nil && err == nil {
				a.sealed = b[0] == 22
			}
			return nil
		})
	}
	ended := make(chan struct{})
	s := &levee.Server{Name: l.Name, Handler: handlerOf(l, like, chosen), Logger: g.log}
	endTLS(s, l, like)
	s.Trace = &levee.Trace{Closed: func(c *levee.Conn, end levee.End) {
		a.terms = original[c.TLSConfig()]
		if state := c.TLS(); state != nil {
			a.sealed, a.alpn = true, state.NegotiatedProtocol
		}
		if a.route < 0 {
			a.refused, a.reason = end.Err, end.Reason
			a.route = refusing(l, end.Err)
		}
		close(ended)
	}}
	listener := &onlyOne{conn: server, closed: make(chan struct{})}
	var running sync.WaitGroup
	running.Go(func() { _ = s.Serve(ctx, listener) }) // ends with s.Close
	running.Go(func() { a.leaf = client.speak(q, l.STARTTLS, identity) })
	select {
	case <-ended:
	case <-ctx.Done():
		err = errors.New("the connection was not decided on in time")
	}
	_ = client.Close()
	_ = s.Close()
	running.Wait()
	if err == nil && a.route < 0 && a.refused == nil {
		a.refused = errors.New("it ended")
	}
	return a, err
}

const askPatience = 10 * time.Second

// refusing is the route that the error is of, or -1.
func refusing(l *config.Listener, err error) int {
	if of, ok := errors.AsType[*route.Error](err); ok {
		for i := range l.Routes {
			if routeName(l, i) == of.Route {
				return i
			}
		}
	}
	return -1
}

// ending returns what TLS would have ended by on a route that was not to be had; -1 is none that is known.
func (s *security) ending(l *config.Listener, i int) *terms {
	if i >= 0 {
		return s.ofRoute[i]
	}
	return s.whole(l)
}

// believing returns the security with terms that believe the identity, and which each stands for.
func (s *security) believing(who *identity) (*security, map[*tls.Config]*terms) {
	like, original := new(security), make(map[*tls.Config]*terms)
	twins := make(map[*terms]*terms)
	for _, t := range s.terms {
		server := &certs.Server{GetCertificate: t.getCertificate, ALPN: config.Texts(t.cfg.ALPN), Tickets: &certs.Tickets{Rotate: -1}}
		twin := &terms{cfg: t.cfg, config: who.believedBy(server.Config()), files: t.files}
		if t.cfg.ACME.Given() && t.cfg.ACME.By(config.ChallengeTLSALPN) {
			twin.config = new(acme.Source).Answering(twin.config) // which has no order under way
		}
		twins[t], original[twin.config] = twin, t
		like.terms = append(like.terms, twin)
	}
	for _, t := range s.ofRoute {
		like.ofRoute = append(like.ofRoute, twins[t])
	}
	like.listener = twins[s.listener]
	return like, original
}

// An identity is a client's certificate, of an authority that lives as long as the question.
type identity struct {
	certificate tls.Certificate
	authority   *x509.CertPool
}

// newIdentity returns nil for nobody.
func newIdentity(name string) (*identity, error) {
	if name == "" {
		return nil, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		IsCA: true, BasicConstraintsValid: true,
	}
	if strings.Contains(name, "://") {
		uri, err := url.Parse(name)
		if err != nil {
			return nil, err
		}
		template.Subject.CommonName, template.URIs = "", []*url.URL{uri}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return &identity{tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool}, nil
}

// believedBy returns the configuration as one that believes the identity, if there is any.
func (id *identity) believedBy(config *tls.Config) *tls.Config {
	if id == nil {
		return config
	}
	choose := config.GetConfigForClient
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		chosen, err := choose(hello)
		if err != nil {
			return nil, err
		}
		chosen = chosen.Clone()
		chosen.ClientAuth, chosen.ClientCAs = tls.VerifyClientCertIfGiven, id.authority
		return chosen, nil
	}
	return config
}

// memory returns both ends of a connection in memory.
func memory(q query) (*speaker, *listening) {
	a, b := net.Pipe()
	server := &listening{
		Conn:   b,
		local:  net.TCPAddrFromAddrPort(q.address),
		remote: net.TCPAddrFromAddrPort(netip.AddrPortFrom(q.source, 50000)),
	}
	server.said.Store(-1)
	return &speaker{Conn: a, other: server}, server
}

// listening is the server's end.
type listening struct {
	net.Conn
	local, remote net.Addr

	heard atomic.Int64 // bytes
	over  atomic.Bool  // the end has been heard
	said  atomic.Int64 // bytes that the client has sent before it said that there are no more; negative before that
}

func (c *listening) LocalAddr() net.Addr  { return c.local }
func (c *listening) RemoteAddr() net.Addr { return c.remote }

func (c *listening) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.heard.Add(int64(n))
	if err == io.EOF {
		c.over.Store(true)
	}
	return n, err
}

// Write does not mind a client that listens no more.
func (c *listening) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if errors.Is(err, io.ErrClosedPipe) {
		return len(p), nil
	}
	return n, err
}

// asked reports whether more has been read than what the client had to say.
func (c *listening) asked() bool {
	said := c.said.Load()
	return c.over.Load() || said >= 0 && c.heard.Load() > said
}

// A speaker is the client's end.
type speaker struct {
	net.Conn
	other *listening
	sent  atomic.Int64
}

func (c *speaker) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.sent.Add(int64(n))
	return n, err
}

// speak says what the client has to say, and that there is no more. It returns the certificate that it was shown.
func (c *speaker) speak(q query, by config.Dialogue, who *identity) *x509.Certificate {
	defer c.Close()
	if !q.tls {
		go func() { _, _ = io.Copy(io.Discard, c.Conn) }() // ends with the connection
		_, _ = c.Write(q.first)
		return nil
	}
	if c.requestTLS(by) != nil {
		return nil
	}
	config := &tls.Config{ServerName: q.sni, NextProtos: q.alpn, InsecureSkipVerify: true} //nolint:gosec // it is the server that is asked, and sent nothing of worth
	if who != nil {
		config.Certificates = []tls.Certificate{who.certificate}
	}
	secure := tls.Client(c, config)
	if secure.Handshake() != nil {
		return nil // the server has its own word on that
	}
	leaf := secure.ConnectionState().PeerCertificates[0]
	go func() { _, _ = io.Copy(io.Discard, c.Conn) }() // ends with the connection
	_, _ = secure.Write(q.first)
	c.other.said.Store(c.sent.Load())
	_ = secure.CloseWrite()
	return leaf
}

// requestTLS says what clients have to say before their hello, where the server speaks first.
func (c *speaker) requestTLS(by config.Dialogue) error {
	switch by {
	case config.DialogueSMTP:
		return c.requestInLines("STARTTLS\r\n")
	case config.DialogueIMAP:
		return c.requestInLines("a STARTTLS\r\n")
	case config.DialogueMySQL:
		return c.requestMySQL()
	}
	return nil
}

// requestInLines hears the greeting, and the answer to the request.
func (c *speaker) requestInLines(request string) error {
	if err := c.skipLine(); err != nil {
		return err
	}
	if _, err := io.WriteString(c, request); err != nil {
		return err
	}
	return c.skipLine()
}

// skipLine reads no byte more.
func (c *speaker) skipLine() error {
	for b := []byte{0}; b[0] != '\n'; {
		if _, err := io.ReadFull(c, b); err != nil {
			return err
		}
	}
	return nil
}

// requestMySQL sends an SSLRequest, to which there is no answer.
func (c *speaker) requestMySQL() error {
	var head [4]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return err
	}
	if _, err := io.CopyN(io.Discard, c.Conn, int64(head[0])|int64(head[1])<<8|int64(head[2])<<16); err != nil {
		return err
	}
	const protocol41, secure = 1 << 9, 1 << 11
	request := make([]byte, 36)
	request[0], request[3] = 32, 1
	binary.LittleEndian.PutUint32(request[4:], protocol41|secure)
	_, err := c.Write(request)
	return err
}

// onlyOne is a listener for one connection.
type onlyOne struct {
	conn   *listening
	once   sync.Once
	taken  atomic.Bool
	closed chan struct{}
}

func (l *onlyOne) Accept() (net.Conn, error) {
	if !l.taken.Swap(true) {
		return l.conn, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *onlyOne) Addr() net.Addr { return l.conn.local }

func (l *onlyOne) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}
