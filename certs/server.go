package certs

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Server is what a server's TLS configuration is made of. Whatever its parts load goes
// for handshakes that begin after that.
type Server struct {
	// GetCertificate returns the certificate for a client, such as
	// [Files.GetCertificate]. With no certificate and no error, the client is refused.
	GetCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)

	// Clients says which client certificates are let in. Nil asks for none.
	Clients *Clients

	// ALPN are the application protocols (RFC 7301), the preferred one first. A client
	// that offers others only is refused (no_application_protocol, section 3.2), by which
	// nobody can have a client of one protocol talk to a server of another (the ALPACA
	// attack). A client that offers none at all is let in, as by that RFC and RFC 9325
	// section 3.7: many that speak TLS inside of older protocols do not know ALPN. It has
	// negotiated "" then, for whoever is to decide by the protocol. Empty ALPN leaves what
	// clients offer unanswered.
	ALPN []string

	// Tickets are the keys of session tickets, which several configurations may share.
	// Nil means random ones of this configuration's own.
	Tickets *Tickets

	// Context tells configurations apart that share Tickets: a session of one cannot be
	// resumed at another whose Context, or policy for clients, is not the same.
	Context string
}

// Config returns a hardened configuration: TLS 1.2 is the least and 1.3 preferred, with
// post-quantum hybrid key exchange (X25519MLKEM768); below 1.3 only cipher suites with
// forward secrecy and authenticated encryption are left; there is no renegotiation. The
// configuration may be used, and cloned, but not be changed: what counts is chosen at
// each handshake, by its GetConfigForClient.
//
// A session that is resumed is subject to the certificates, CAs, revocation lists and
// lists of clients that are in force at that time. Once they change, tickets from before
// are of no use: their clients go through a full handshake, rather than being turned
// away for a ticket that speaks of an earlier certificate.
func (s *Server) Config() *tls.Config {
	d := &door{Server: *s}
	if d.Tickets == nil {
		d.Tickets = new(Tickets)
	}
	config := hardened()
	config.NextProtos = slices.Clone(s.ALPN)
	config.GetCertificate = s.GetCertificate
	config.SessionTicketsDisabled = true // unless there are keys
	if s.Clients != nil {
		config.ClientAuth = tls.RequireAndVerifyClientCert
		config.ClientCAs = x509.NewCertPool() // nil would mean the system's
		config.VerifyConnection = func(state tls.ConnectionState) error { return s.Clients.Allows(&state) }
	}
	d.base = config.Clone()
	config.GetConfigForClient = d.configFor
	return config
}

// hardened is what every configuration here starts from. Key exchanges are crypto/tls's
// own, which include the hybrids; renegotiation does not exist for its servers.
func hardened() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		CipherSuites: []uint16{ // of TLS 1.2, and in no order: crypto/tls has its own
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
	}
}

// A door is a Server whose configuration is in use.
type door struct {
	Server
	base *tls.Config

	mu      sync.Mutex
	current atomic.Pointer[generation]
}

// A generation is the configurations that are right until something changes. They
// differ in one thing each.
type generation struct {
	policy *policy // nil without Clients
	period *period // nil without tickets

	config   *tls.Config
	afresh   *tls.Config // resumes nothing
	refusing *tls.Config // speaks no protocol
}

// configFor is a GetConfigForClient.
func (d *door) configFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	var p *policy
	if d.Clients != nil {
		if p = d.Clients.inForce.Load(); p == nil {
			return nil, errNoPolicy
		}
	}
	g := d.generation(p, d.Tickets.at(time.Now()))
	switch {
	case !d.speaks(hello.SupportedProtos):
		return g.refusing, nil
	case slices.Contains(hello.Extensions, preSharedKey) && !d.knows(hello):
		return g.afresh, nil
	}
	return g.config, nil
}

// preSharedKey is the extension by which TLS 1.3 resumes (RFC 8446 section 4.2.11).
const preSharedKey = 41

// knows reports whether there is a certificate for the client. To resume by TLS 1.3,
// crypto/tls does not ask for one, so a name that has gone would stay.
func (d *door) knows(hello *tls.ClientHelloInfo) bool {
	if d.GetCertificate == nil {
		return false
	}
	certificate, err := d.GetCertificate(hello)
	return certificate != nil && err == nil
}

// speaks reports whether crypto/tls should look at the protocols that a client offers.
// It would let HTTP/1.1 pass where only HTTP/2 is spoken.
func (d *door) speaks(offered []string) bool {
	if len(d.ALPN) == 0 || len(offered) == 0 {
		return true
	}
	return slices.ContainsFunc(d.ALPN, func(p string) bool { return slices.Contains(offered, p) })
}

// noProtocol cannot be offered: it is longer than 255 bytes.
var noProtocol = []string{strings.Repeat("-", 256)}

func (d *door) generation(policy *policy, period *period) *generation {
	if g := d.current.Load(); g != nil && g.policy == policy && g.period == period {
		return g
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if g := d.current.Load(); g != nil && g.policy == policy && g.period == period {
		return g
	}
	g := &generation{policy: policy, period: period}
	g.afresh = d.base.Clone()
	if policy != nil {
		g.afresh.ClientCAs = policy.roots
		if policy.optional {
			g.afresh.ClientAuth = tls.VerifyClientCertIfGiven
		}
		g.afresh.VerifyConnection = func(state tls.ConnectionState) error { return d.verify(&state, policy) }
	}
	g.refusing = g.afresh.Clone()
	g.refusing.NextProtos = noProtocol
	g.config = g.afresh.Clone()
	if period != nil {
		d.resume(g.config, policy, period)
	}
	d.current.Store(g)
	return g
}

// verify asks the policy that is in force, which the handshake may have begun before.
func (d *door) verify(state *tls.ConnectionState, began *policy) error {
	if !state.DidResume && len(state.VerifiedChains) > 0 && d.Clients.inForce.Load() == began {
		return began.allowsChains(state.VerifiedChains) // crypto/tls has just verified them by its CAs
	}
	return d.Clients.Allows(state)
}

// resume lets clients resume sessions that were begun under this very context and policy
// (the keys see to that) and server name, as RFC 6066 section 3 has it.
func (d *door) resume(config *tls.Config, policy *policy, period *period) {
	purpose := fmt.Sprintf("levee session tickets, context %q", d.Context)
	if policy != nil {
		purpose += fmt.Sprintf(", clients %x", policy.sum)
	}
	config.SessionTicketsDisabled = false
	config.SetSessionTicketKeys(period.keys(purpose))
	config.WrapSession = func(state tls.ConnectionState, session *tls.SessionState) ([]byte, error) {
		session.Extra = append(session.Extra, nameTag(&state))
		return config.EncryptTicket(state, session)
	}
	config.UnwrapSession = func(ticket []byte, state tls.ConnectionState) (*tls.SessionState, error) {
		session, err := config.DecryptTicket(ticket, state)
		if session == nil || err != nil {
			return nil, err
		}
		name := nameTag(&state)
		if !slices.ContainsFunc(session.Extra, func(extra []byte) bool { return string(extra) == string(name) }) {
			return nil, nil // a full handshake
		}
		return session, nil
	}
}

func nameTag(state *tls.ConnectionState) []byte {
	return []byte("levee server name " + strings.ToLower(state.ServerName))
}
