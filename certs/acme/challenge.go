package acme

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"

	"github.com/levee-net/levee/internal/servername"
)

const (
	cleanUpTimeout = 10 * time.Second
	lookUpTimeout  = 2 * time.Second
	hangUpTimeout  = 5 * time.Second
)

// solvers are what the ACME client is to use, by challenge.
func (st *state) solvers(s *Source, challenges []Challenge) map[string]acmez.Solver {
	solvers := make(map[string]acmez.Solver)
	for _, c := range challenges {
		solvers[string(c)] = st.pending
		if c == DNS01 {
			solvers[string(c)] = &certmagic.DNS01Solver{DNSManager: certmagic.DNSManager{
				DNSProvider: s.DNS, Resolvers: s.Resolvers, Logger: zap.New(bridge{s.logger()}),
			}}
		}
	}
	return solvers
}

// pending are the challenges that the authority may come to see answered: ours, and by way
// of the storage those of other machines, whom it may as well come to us for.
type pending struct {
	storage certmagic.Storage
	folder  string // in the storage

	mu      sync.Mutex
	ours    map[string]*proof
	looking map[string]*lookUp
}

// A proof is a challenge and what answers it.
type proof struct {
	acme.Challenge
	cert *tls.Certificate // for TLSALPN01
}

// A lookUp is a look into the storage that goes on. There is one for a name at a time, so
// that strangers cannot have more of them made; an authority comes from several places at
// once, and all of them wait for it.
type lookUp struct {
	over  chan struct{} // closed when found is settled
	found *proof
}

func newPending(storage certmagic.Storage, issuerKey string) *pending {
	return &pending{
		storage: storage, folder: path.Join("acme", issuerKey, "challenges"),
		ours: make(map[string]*proof), looking: make(map[string]*lookUp),
	}
}

func (p *pending) key(name string) string {
	return path.Join(p.folder, certmagic.StorageKeys.Safe(name)+".json")
}

func newProof(c acme.Challenge) (*proof, error) {
	if Challenge(c.Type) != TLSALPN01 {
		return &proof{Challenge: c}, nil
	}
	cert, err := acmez.TLSALPN01ChallengeCert(c)
	return &proof{c, cert}, err
}

// Present is acmez's. A name has one challenge at a time: its lock is held.
func (p *pending) Present(ctx context.Context, c acme.Challenge) error {
	made, err := newProof(c)
	if err != nil {
		return err
	}
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.ours[c.Identifier.Value] = made
	p.mu.Unlock()
	return p.storage.Store(ctx, p.key(c.Identifier.Value), text)
}

// CleanUp is acmez's.
func (p *pending) CleanUp(ctx context.Context, c acme.Challenge) error {
	p.mu.Lock()
	delete(p.ours, c.Identifier.Value)
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTimeout)
	defer cancel()
	return p.storage.Delete(ctx, p.key(c.Identifier.Value))
}

// of returns the challenge of that type for one of our names, nil if there is none.
func (p *pending) of(ctx context.Context, name string, kind Challenge) *proof {
	found := p.find(ctx, name)
	if found == nil || Challenge(found.Type) != kind {
		return nil
	}
	return found
}

func (p *pending) find(ctx context.Context, name string) *proof {
	p.mu.Lock()
	if found := p.ours[name]; found != nil {
		p.mu.Unlock()
		return found
	}
	look, joined := p.looking[name]
	if !joined {
		look = &lookUp{over: make(chan struct{})}
		p.looking[name] = look
	}
	p.mu.Unlock()
	if joined {
		select {
		case <-look.over:
			return look.found
		case <-ctx.Done():
			return nil
		}
	}
	defer func() {
		p.mu.Lock()
		delete(p.looking, name)
		p.mu.Unlock()
		close(look.over)
	}()
	look.found = p.fetch(context.WithoutCancel(ctx), name) // it is not for this one alone
	return look.found
}

// fetch looks for another machine's challenge.
func (p *pending) fetch(ctx context.Context, name string) *proof {
	ctx, cancel := context.WithTimeout(ctx, lookUpTimeout)
	defer cancel()
	text, err := p.storage.Load(ctx, p.key(name))
	if err != nil {
		return nil // the machine that has ordered will be told
	}
	var c acme.Challenge
	if json.Unmarshal(text, &c) != nil || c.Identifier.Value != name {
		return nil
	}
	found, err := newProof(c)
	if err != nil {
		return nil
	}
	return found
}

// Answering returns a configuration that is config, but answers the authority's
// TLS-ALPN-01 challenges (RFC 8737) too. They are told by their hello, which offers
// acme-tls/1 and nothing else; config need not know of that protocol, and its own stay
// strict. config must not be changed afterwards.
//
// The answer is the handshake, and nothing is ever served by way of it: when the
// authority has seen what it came for, the handshake ends in an error, so that a stranger
// who speaks acme-tls/1 gets past no policy for client certificates. That takes TLS 1.3.
func (s *Source) Answering(config *tls.Config) *tls.Config {
	answering := config.Clone()
	answering.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Equal(hello.SupportedProtos, []string{acmez.ACMETLS1Protocol}) {
			return s.answer(hello)
		}
		if config.GetConfigForClient == nil {
			return nil, nil
		}
		return config.GetConfigForClient(hello)
	}
	return answering
}

// answer returns the configuration for a hello that may be the authority's. Without
// anything to answer it has no certificate, and the client is refused (unrecognized_name).
func (s *Source) answer(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	config := &tls.Config{
		MinVersion:             tls.VersionTLS13, // whose server sends its certificate before it says how things went
		NextProtos:             []string{acmez.ACMETLS1Protocol},
		SessionTicketsDisabled: true,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil },
		VerifyConnection:       func(tls.ConnectionState) error { return hangUp(hello.Conn) },
	}
	found, err := s.proofFor(hello)
	if found != nil {
		config.Certificates, config.GetCertificate = []tls.Certificate{*found.cert}, nil
	}
	return config, err
}

// proofFor returns the challenge that a hello asks for, nil if there is none. An error ends the handshake.
func (s *Source) proofFor(hello *tls.ClientHelloInfo) (found *proof, err error) {
	st := s.loaded.Load()
	asked, err := servername.Normalize(hello.ServerName)
	if st == nil || err != nil || st.byName[asked] == nil {
		return nil, nil //nolint:nilerr // what is no name is none of ours
	}
	look := func(ctx context.Context) { found = st.pending.of(ctx, asked, TLSALPN01) }
	if levee, ok := hello.Conn.(interface {
		WaitOutside(wait func(ctx context.Context)) error
	}); ok {
		err = levee.WaitOutside(look) // who waits for the storage is to keep nobody else waiting
	} else {
		look(hello.Context())
	}
	return found, err
}

var errAnswered = errors.New("an ACME challenge has been answered, and nothing is served by way of it")

// hangUp waits for the authority to hang up, and ends the handshake. To close before it has
// is to reset the connection, as there are bytes that nobody has read, and a reset may
// overtake the certificate.
func hangUp(conn net.Conn) error {
	_ = conn.SetReadDeadline(time.Now().Add(hangUpTimeout))
	_, _ = io.Copy(io.Discard, io.LimitReader(conn, 16<<10))
	return errAnswered
}

const challengePath = "/.well-known/acme-challenge/" // RFC 8555 section 8.3

// HTTPHandler answers the authority's HTTP-01 challenges, on port 80. Everything else it
// sends to https:// on port 443, if it is for one of Domains, and refuses it if not.
func (s *Source) HTTPHandler() http.Handler { return http.HandlerFunc(s.serveHTTP) }

// Known reports whether a request with that Host, which may have a port, is for one of
// Domains: for who has several Sources behind one port 80. Before Load none is.
func (s *Source) Known(host string) bool {
	_, known := requested(s.loaded.Load(), host)
	return known
}

func (s *Source) serveHTTP(w http.ResponseWriter, r *http.Request) {
	st := s.loaded.Load()
	host, known := requested(st, r.Host)
	token, isChallenge := strings.CutPrefix(r.URL.Path, challengePath)
	switch {
	case !known:
		http.Error(w, "no such host here", http.StatusMisdirectedRequest)
	case isChallenge:
		found := st.pending.of(r.Context(), host, HTTP01)
		if found == nil || found.Token != token || r.Method != http.MethodGet && r.Method != http.MethodHead {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = io.WriteString(w, found.KeyAuthorization) // whether it has arrived, the authority says
	default:
		target := *r.URL
		target.Scheme, target.Host, target.User = "https", host, nil
		http.Redirect(w, r, target.String(), http.StatusPermanentRedirect)
	}
}

// requested returns the name that a request is for, and whether it is one of ours.
func requested(st *state, hostPort string) (host string, known bool) {
	if st == nil {
		return "", false
	}
	host = hostPort
	if h, _, err := net.SplitHostPort(hostPort); err == nil {
		host = h
	}
	host, err := servername.Normalize(host)
	if err != nil || host == "" {
		return "", false
	}
	return host, st.find(host) != nil
}
