package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"github.com/levee-net/levee/certs"
	"github.com/levee-net/levee/certs/acme"
	"github.com/levee-net/levee/internal/config"
)

// An issuer is an ACME authority that issues certificates, the same for all who say the same of it.
type issuer struct {
	*acme.Source
	answers http.Handler // its challenges by http-01
}

// addIssued has an authority's certificates shown. Who only looks is shown some made for the moment, and nothing is
// written or ordered.
func (s *securing) addIssued(t *terms) error {
	cfg := &t.cfg.ACME
	roots, err := rootsOf(cfg.CA)
	if err != nil {
		return located(cfg.Pos, fmt.Errorf("acme.ca: %w", err))
	}
	if s.env.lookOnly {
		if info, err := os.Stat(cfg.Folder); err == nil && !info.IsDir() {
			return located(cfg.Pos, fmt.Errorf("acme: mkdir %s: %w", cfg.Folder, syscall.ENOTDIR))
		}
		ca, err := certs.DevelopmentCA("")
		if err != nil {
			return err
		}
		t.getCertificate = forNames(config.Texts(cfg.Domains), ca.ServerConfig().GetCertificate)
		return nil
	}
	alike := *cfg
	alike.Pos = config.Position{} // which is no part of what it says
	alike.Domains = nil
	key := fmt.Sprintf("issuer %q %+v%s", config.Texts(cfg.Domains), alike, contentsOf(cfg.CA))
	i, err := keep(s.generation, key, func(p *part) (*issuer, error) { return s.newIssuer(cfg, roots, p) })
	if err != nil {
		return err
	}
	if !slices.Contains(s.issuers, i) {
		s.generation.issuers = append(s.generation.issuers, i)
		s.generation.expiries = append(s.generation.expiries, listenerExpiries{s.listener.Name, i.expiries})
	}
	t.issuer, t.getCertificate = i, i.GetCertificate
	return nil
}

func (s *securing) newIssuer(cfg *config.ACME, roots *x509.CertPool, p *part) (*issuer, error) {
	source := &acme.Source{
		Domains: config.Texts(cfg.Domains), Email: cfg.Email, Agreed: cfg.AgreeToTerms, Directory: cfg.Directory,
		Staging: cfg.Staging, Roots: roots, Folder: cfg.Folder,
		Problem: s.news().problem, Changed: s.news().changed("certificates by ACME"),
	}
	if s.cfg.Telemetry.Logs.Level <= slog.LevelDebug {
		source.Logger = s.log // every step, a screenful for each certificate
	}
	for _, c := range cfg.Challenges {
		source.Challenges = append(source.Challenges, acme.Challenge(c))
	}
	if cfg.EAB.KeyID != "" {
		source.EAB = &acme.EAB{KeyID: cfg.EAB.KeyID, Key: cfg.EAB.Key}
	}
	if err := s.store(source); err != nil {
		return nil, located(cfg.Pos, fmt.Errorf("acme: %w", err))
	}
	if err := source.Load(); err != nil {
		return nil, located(cfg.Pos, err)
	}
	p.run = func(ctx context.Context, running *sync.WaitGroup) { // has certificates ordered and renewed
		running.Go(func() { _ = source.Run(ctx) }) // problems are told
	}
	return &issuer{Source: source, answers: source.HTTPHandler()}, nil
}

// forNames has certificates for no other names, as a Source has.
func forNames(names []string, get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	ours := newNameSet(names)
	return func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if hello.ServerName != "" && !ours.meets(hello.ServerName) {
			return nil, nil
		}
		return get(hello)
	}
}

// store says where the source keeps what it gets, if the file does not.
func (s *securing) store(source *acme.Source) error {
	switch {
	case source.Folder != "":
	case s.shared != nil:
		source.Storage = s.shared.certificates()
	default:
		dir, err := s.env.developmentDir()
		if err != nil {
			return fmt.Errorf("no place for certificates and keys: %w; name a folder", err)
		}
		source.Folder = filepath.Join(dir, "acme")
	}
	return nil
}

// expiries tells when which certificate expires.
func (i *issuer) expiries() (all []expiry) {
	for _, info := range i.Certificates() {
		if !info.NotAfter.IsZero() {
			all = append(all, expiry{info.Name, info.NotAfter})
		}
	}
	return all
}

// answerChallenge answers an authority that comes by http-01, and sends all others to https.
func (f *front) answerChallenge(w http.ResponseWriter, r *http.Request) {
	for _, i := range f.now.Load().issuers {
		if i.Known(r.Host) {
			i.answers.ServeHTTP(w, r)
			return
		}
	}
	http.Error(w, "not one of ours", http.StatusMisdirectedRequest)
}
