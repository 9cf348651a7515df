package certs

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/tls"
	"slices"
	"strings"
	"time"

	"github.com/levee-net/levee/internal/servername"
)

// A selection is certificates, and which of them is for whom. It never changes.
type selection struct {
	pairs []*pair
	names map[string][]candidate // .example.com stands for *.example.com
	first []candidate            // for clients that name no server
}

// A candidate is a certificate for a name. Of a name's candidates the best comes first.
type candidate struct {
	cert *tls.Certificate

	// scheme is the signature scheme without which a client of TLS 1.3 cannot use the
	// certificate, and with which it can; 0 if it is not that simple.
	scheme tls.SignatureScheme
	rank   int
}

func newSelection(pairs []*pair) *selection {
	s := &selection{pairs: pairs, names: make(map[string][]candidate)}
	for _, p := range pairs {
		c := newCandidate(p.cert)
		for _, name := range p.cert.Leaf.DNSNames {
			pattern, err := servername.ParsePattern(name)
			if err != nil {
				continue // nobody can ask for it
			}
			key := strings.TrimPrefix(pattern.String(), "*")
			if !slices.Contains(s.names[key], c) {
				s.names[key] = append(s.names[key], c)
			}
		}
	}
	for _, candidates := range s.names {
		slices.SortStableFunc(candidates, func(a, b candidate) int { return a.rank - b.rank })
	}
	s.first = []candidate{newCandidate(pairs[0].cert)}
	if names := pairs[0].cert.Leaf.DNSNames; len(names) > 0 {
		if pattern, err := servername.ParsePattern(names[0]); err == nil {
			s.first = s.names[strings.TrimPrefix(pattern.String(), "*")]
		}
	}
	return s
}

func newCandidate(cert *tls.Certificate) candidate {
	switch key := cert.Leaf.PublicKey.(type) {
	case *ecdsa.PublicKey:
		schemes := map[int]tls.SignatureScheme{256: tls.ECDSAWithP256AndSHA256, 384: tls.ECDSAWithP384AndSHA384, 521: tls.ECDSAWithP521AndSHA512}
		return candidate{cert, schemes[key.Curve.Params().BitSize], 0}
	case ed25519.PublicKey:
		return candidate{cert, tls.Ed25519, 1}
	}
	return candidate{cert, 0, 2}
}

// choose returns nil if there is no certificate for the client's name.
func (s *selection) choose(hello *tls.ClientHelloInfo) *tls.Certificate {
	candidates := s.first
	if hello.ServerName != "" {
		candidates = s.find(hello.ServerName)
	}
	if len(candidates) == 0 {
		return nil
	}
	last := len(candidates) - 1
	for _, c := range candidates[:last] {
		if time.Now().Before(c.cert.Leaf.NotAfter) && c.suits(hello) {
			return c.cert
		}
	}
	return candidates[last].cert // if it does not suit either, crypto/tls tells the client so
}

// find returns the candidates for a name that a client has sent.
func (s *selection) find(sent string) []candidate {
	if sent[0] != '.' { // nobody's name, and a wildcard's key
		if candidates := s.names[sent]; candidates != nil {
			return candidates
		}
	}
	name, err := servername.Normalize(sent)
	if err != nil {
		return nil
	}
	if candidates := s.names[name]; candidates != nil {
		return candidates
	}
	dot := strings.IndexByte(name, '.')
	if dot < 0 {
		return nil
	}
	return s.names[name[dot:]]
}

// suits reports whether the client can use the certificate. The detour for those without
// TLS 1.3, where it depends on cipher suites and curves too, allocates.
func (c candidate) suits(hello *tls.ClientHelloInfo) bool {
	if c.scheme != 0 && slices.Contains(hello.SupportedVersions, tls.VersionTLS13) {
		return slices.Contains(hello.SignatureSchemes, c.scheme)
	}
	return hello.SupportsCertificate(c.cert) == nil
}
