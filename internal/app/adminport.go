package app

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/levee-net/levee/certs"
	"github.com/levee-net/levee/internal/admin"
	"github.com/levee-net/levee/internal/config"
)

// adminServer makes what answers operators, with what it lets them in by.
func (f *front) adminServer(cfg *config.Admin) (*admin.Server, error) {
	s := &admin.Server{Metrics: f.scraped, Log: f.log, API: f.api(), Hosts: config.Texts(cfg.Hosts)}
	f.registry.MustRegister(s, readiness(s))
	if cfg.TokenFile != "" {
		s.Token = &admin.Token{
			File:    cfg.TokenFile,
			Problem: f.adminProblem,
			Changed: func() { f.log.Info("admin: another token is in force") },
		}
		err := s.Token.Load()
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w; make one with: (umask 077; openssl rand -hex 32 > %s)", err, cfg.TokenFile)
		}
		if err != nil {
			return nil, located(cfg.TokenPos, fmt.Errorf("admin.token_file: %w", err))
		}
		f.watch(s.Token)
	}
	if cfg.TLS.Given() {
		if err := f.secureAdmin(s, &cfg.TLS); err != nil {
			return nil, located(cfg.TLS.Pos, fmt.Errorf("admin.tls: %w", err))
		}
	}
	return s, nil
}

// readiness says in the metrics what /readyz says: who drains for too long is found by it.
func readiness(s *admin.Server) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "levee_ready",
		Help: "Whether newcomers are welcome, as /readyz says: 1, or 0 during the start and while draining.",
	}, func() float64 { return oneIf(s.Ready()) })
}

func (f *front) adminProblem(err error) {
	f.log.Error("admin: what was in force before is kept", "err", err)
}

// secureAdmin has the server end TLS. Who shows no certificate is told so by an answer, and not by the handshake: whether
// levee lives and is ready anybody may ask.
func (f *front) secureAdmin(s *admin.Server, cfg *config.AdminTLS) error {
	files := &certs.Files{Pairs: []certs.Pair{{Cert: cfg.Cert, Key: cfg.Key}}, Problem: f.adminProblem}
	if err := files.Load(); err != nil {
		return err
	}
	f.watch(files)
	ends := &certs.Server{GetCertificate: files.GetCertificate, ALPN: []string{"http/1.1"}, Context: "admin"}
	if cfg.ClientCA != "" {
		ends.Clients = &certs.Clients{CAs: []string{cfg.ClientCA}, Optional: true, Problem: f.adminProblem}
		if err := ends.Clients.Load(); err != nil {
			return err
		}
		f.watch(ends.Clients)
		s.Client = ends.Clients.Allows
	}
	s.TLS = ends.Config()
	return nil
}

// reportAdmin says who may have levee do what.
func (g *generation) reportAdmin(say func(warning bool, format string, args ...any)) {
	cfg := &g.cfg.Admin
	if cfg.Listen.Off() {
		say(true, "admin is off: no metrics, and nobody can ask whether it is healthy")
		return
	}
	who := "whoever has the token"
	switch token, certificate := cfg.TokenFile != "", cfg.TLS.ClientCA != ""; {
	case token && certificate:
		who = "whoever has the token and a certificate of admin.tls.client_ca"
	case certificate:
		who = "whoever has a certificate of admin.tls.client_ca"
	case !token && cfg.Listen.Network == "unix":
		who = "the user that levee runs as"
	case !token:
		who = "every user and program of this machine"
	}
	say(false, "admin: %s may look on, end connections, ban clients and drain levee", who)
	if !cfg.Listen.Loopback() && !cfg.TLS.Given() {
		say(true, "admin: other machines reach it in plaintext (admin.insecure): who listens on the way has the token")
	}
}
