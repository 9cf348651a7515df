package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/levee-net/levee/certs"
	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/internal/servername"
	"github.com/levee-net/levee/internal/watch"
)

// A security is what becomes of TLS at a listener.
type security struct {
	terms    []*terms // each once
	ofRoute  []*terms // nil where TLS does not end here
	listener *terms   // what routes have that do not say otherwise; nil if none ends TLS with it
}

// Terms are what TLS ends by.
type terms struct {
	where  string // the listener, and the route if they are its own
	name   string // the same, but for what a route without a name matches in place of its number
	cfg    config.TLS
	config *tls.Config

	getCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	files          *certs.Files // nil where certificates are not from files
	issuer         *issuer      // nil where no authority issues them
	clients        *policy      // nil if clients are asked for no certificate
}

// A reloadable is something in files that may be read again.
type reloadable interface {
	Load() error
	Watch(ctx context.Context) error
}

// reads has the part's files read again when they change.
func (p *part) reads(r reloadable) {
	p.load = r.Load
	p.run = func(ctx context.Context, running *sync.WaitGroup) {
		running.Go(func() { _ = r.Watch(ctx) }) // the problem is told
	}
}

// watch has files read again when they change that are no generation's.
func (f *front) watch(r reloadable) {
	p := &part{users: 1}
	p.reads(r)
	f.own = append(f.own, p)
}

// whole returns the terms if the same hold for all connections in TLS of the listener, so that they
// need not be looked at first.
func (s *security) whole(l *config.Listener) *terms {
	if len(s.terms) != 1 || l.STARTTLS != "" || l.TLS.Mode != config.TLSTerminate && l.TLS.Mode != config.TLSOptional {
		return nil
	}
	for i, of := range s.ofRoute {
		r := &l.Routes[i]
		if of == nil || r.Refuse || l.TLS.Mode == config.TLSOptional && r.TLS.Mode != "" {
			return nil
		}
	}
	return s.terms[0]
}

// A securing makes a listener's terms. What says the same is made once.
type securing struct {
	*generation
	listener *config.Listener
	path     string

	terms map[string]*terms
}

// secure loads what the listener ends TLS with.
func (g *generation) secure(l *config.Listener, path string) (*security, error) {
	s := &securing{generation: g, listener: l, path: path, terms: make(map[string]*terms)}
	made := new(security)
	for i := range l.Routes {
		r := &l.Routes[i]
		var of *terms
		if l.Terminates(r) {
			cfg := l.TLSOf(r)
			where := l.Name
			identity := where
			if r.TLS.Mode != "" {
				where += "/" + routeName(l, i)
				identity += "/" + routeIdentity(r)
			}
			var err error
			if of, err = s.make(cfg, where, identity); err != nil {
				return nil, err
			}
			if !slices.Contains(made.terms, of) {
				made.terms = append(made.terms, of)
			}
			if r.TLS.Mode == "" {
				made.listener = of
			}
			if err := s.checkNames(r, of, fmt.Sprintf("%s.routes[%d]", path, i)); err != nil {
				return nil, err
			}
		}
		made.ofRoute = append(made.ofRoute, of)
	}
	return made, nil
}

// make makes terms. Where they are tells the sessions of some from those of others.
func (s *securing) make(cfg config.TLS, where, name string) (*terms, error) {
	key := cfg.Terms()
	if len(cfg.ClientCA) > 0 {
		key += name // a later policy may be of one of two alone
	}
	if t, ok := s.terms[key]; ok {
		return t, nil
	}
	t := &terms{where: where, name: name, cfg: cfg}
	server := &certs.Server{ALPN: config.Texts(cfg.ALPN), Context: where}
	if err := s.addCertificates(t); err != nil {
		return nil, err
	}
	server.GetCertificate = t.getCertificate
	if len(cfg.ClientCA) > 0 {
		p, err := s.policy(&cfg)
		if err != nil {
			return nil, err
		}
		t.clients, server.Clients = p, p.clients
	}
	var err error
	if server.Tickets, err = s.ticketsOf(cfg.Tickets); err != nil {
		return nil, err
	}
	t.config, err = keep(s.generation, fmt.Sprintf("terms %q %q %s%s", where, name, key, contentsOf(cfg.ACME.CA)), func(p *part) (*tls.Config, error) {
		made := server.Config()
		if t.issuer != nil && cfg.ACME.By(config.ChallengeTLSALPN) {
			made = t.issuer.Answering(made)
		}
		p.lasts = true
		p.run = func(context.Context, *sync.WaitGroup) { s.endings.Store(made, name) } // and not before: it may never come into force
		f := s.front
		p.over = func() { f.endings.Delete(made) }
		return made, nil
	})
	if err != nil {
		return nil, err
	}
	s.terms[key] = t
	return t, nil
}

func (s *securing) addCertificates(t *terms) error {
	if t.cfg.ACME.Given() {
		return s.addIssued(t)
	}
	if t.cfg.Development {
		ca, err := s.developmentCA()
		if err != nil {
			return err
		}
		t.getCertificate = ca.ServerConfig().GetCertificate
		return nil
	}
	pairs := make([]certs.Pair, 0, len(t.cfg.Certificates))
	for _, c := range t.cfg.Certificates {
		pairs = append(pairs, certs.Pair{Cert: c.Cert, Key: c.Key, OCSP: c.OCSP})
	}
	var err error
	t.files, err = keep(s.generation, fmt.Sprintf("certificates %s %q", s.listener.Name, pairs), func(p *part) (*certs.Files, error) {
		files := &certs.Files{Pairs: pairs, Problem: s.news().problem, Changed: s.news().changed("certificates")}
		if err := files.Load(); err != nil {
			for i, c := range t.cfg.Certificates { // which of them is it?
				if err := (&certs.Files{Pairs: pairs[i : i+1]}).Load(); err != nil {
					return nil, located(c.Pos, err)
				}
			}
			return nil, located(t.cfg.Pos, err)
		}
		p.reads(files)
		return files, nil
	})
	if err != nil {
		return err
	}
	s.generation.expiries = append(s.generation.expiries, listenerExpiries{s.listener.Name, func() []expiry { return expiriesOf(t.files) }})
	t.getCertificate = t.files.GetCertificate
	return nil
}

// policy returns the policy for clients.
func (s *securing) policy(cfg *config.TLS) (*policy, error) {
	alike := func(cas, crls []string, allow config.ClientAllow) *certs.Clients {
		return &certs.Clients{
			CAs: cas, CRLs: crls, Optional: cfg.ClientOptional,
			DNS: config.Texts(allow.DNS), URIs: config.Texts(allow.URI), Emails: config.Texts(allow.Email),
			CommonNames: config.Texts(allow.CommonName), SPKIs: config.Texts(allow.SPKI),
		}
	}
	cas, crls := config.Texts(cfg.ClientCA), config.Texts(cfg.ClientCRL)
	clients := alike(cas, crls, cfg.ClientAllow)
	key := fmt.Sprintf("%q %q %t %q %q %q %q %q", cas, crls, clients.Optional,
		clients.DNS, clients.URIs, clients.Emails, clients.CommonNames, clients.SPKIs)
	made, err := keep(s.generation, "policy "+s.listener.Name+" "+key, func(p *part) (*policy, error) { return s.newPolicy(cfg, clients, alike, p) })
	if err == nil && !slices.Contains(s.generation.policies, made) {
		s.generation.policies = append(s.generation.policies, made)
	}
	return made, err
}

// newPolicy loads the policy. What only some of it would be shows which of it is no good.
func (s *securing) newPolicy(cfg *config.TLS, clients *certs.Clients, made func(cas, crls []string, allow config.ClientAllow) *certs.Clients, part *part) (*policy, error) {
	p := newPolicy(s.front, s.listener.Name, clients)
	clients.Problem = s.news().problem
	told := s.news().changed("client policy")
	clients.Changed = func() {
		p.changed() // first: who reads the log may rely on it
		told()
	}
	part.reads(clients)
	watching := part.run
	part.run = func(ctx context.Context, running *sync.WaitGroup) {
		watching(ctx, running)
		running.Go(func() { p.enforce(ctx) })
	}
	err := clients.Load()
	if err == nil {
		return p, nil
	}
	cas := config.Texts(cfg.ClientCA)
	for _, file := range cfg.ClientCA { // which of them is it?
		if err := made([]string{file.Text}, nil, config.ClientAllow{}).Load(); err != nil {
			return nil, located(file.Pos, err)
		}
	}
	for _, file := range cfg.ClientCRL {
		if err := made(cas, []string{file.Text}, config.ClientAllow{}).Load(); err != nil {
			return nil, located(file.Pos, err)
		}
	}
	for _, e := range entriesOf(&cfg.ClientAllow) {
		if err := made(cas, nil, e.alone).Load(); err != nil {
			return nil, located(e.Pos, err)
		}
	}
	return nil, located(cfg.Pos, err)
}

// An entry is one of client_allow's.
type entry struct {
	config.Word
	alone config.ClientAllow // a list of nothing else
}

func entriesOf(a *config.ClientAllow) (entries []entry) {
	for _, list := range []struct {
		words []config.Word
		alone func(one []config.Word) config.ClientAllow
	}{
		{a.DNS, func(one []config.Word) config.ClientAllow { return config.ClientAllow{DNS: one} }},
		{a.URI, func(one []config.Word) config.ClientAllow { return config.ClientAllow{URI: one} }},
		{a.Email, func(one []config.Word) config.ClientAllow { return config.ClientAllow{Email: one} }},
		{a.CommonName, func(one []config.Word) config.ClientAllow { return config.ClientAllow{CommonName: one} }},
		{a.SPKI, func(one []config.Word) config.ClientAllow { return config.ClientAllow{SPKI: one} }},
	} {
		for i := range list.words {
			entries = append(entries, entry{list.words[i], list.alone(list.words[i : i+1])})
		}
	}
	return entries
}

func (s *securing) ticketsOf(cfg config.Tickets) (*certs.Tickets, error) {
	pos := cfg.Pos
	cfg.Pos = config.Position{} // which is no part of what it says
	name := fmt.Sprintf("tickets %s %+v", s.listener.Name, cfg)
	tickets, err := keep(s.generation, name, func(p *part) (*certs.Tickets, error) {
		t := &certs.Tickets{File: cfg.File, Rotate: cfg.Rotate, Problem: s.news().problem}
		if t.File == "" && t.Rotate >= 0 && s.shared != nil {
			t.Secret, t.Interval = s.shared.ticketSecret, sharedInterval
			p.reads(t) // which asks for it: until it is reached there are no tickets, and that is no reason not to serve
			p.far = true
			return t, nil
		}
		if err := t.Load(); err != nil {
			return nil, located(pos, err)
		}
		if t.File != "" {
			p.reads(t)
		}
		return t, nil
	})
	if err == nil {
		s.tickets = append(s.tickets, ownTickets{name, tickets})
	}
	return tickets, err
}

// ownTickets are a listener's, or a route's. Two that say the same are one.
type ownTickets struct {
	name    string
	tickets *certs.Tickets
}

// news are told of a listener's files. Who tells them may outlive the generation that they are read for, and does not
// hold it.
type news struct {
	*front
	listener string
}

func (s *securing) news() news {
	s.metrics.problems.WithLabelValues(s.listener.Name) // which is told of from the start
	return news{s.front, s.listener.Name}
}

// problem is told what is wrong with the files of a running levee.
func (n news) problem(err error) {
	n.metrics.problems.WithLabelValues(n.listener).Inc()
	if errors.Is(err, certs.ErrKept) {
		n.metrics.reloaded(false)
		n.log.Error("not reloaded; what was in force before is kept", "listener", n.listener, "err", err)
		return
	}
	n.log.Warn("certificates", "listener", n.listener, "err", err)
}

// changed notes that files have been read again that had changed.
func (n news) changed(what string) func() {
	return func() {
		n.metrics.reloaded(true)
		n.log.Info("reloaded", "listener", n.listener, "what", what)
	}
}

// checkNames makes sure that there is a certificate for what the route matches: without one, the handshake
// of whoever comes for it would be refused.
func (s *securing) checkNames(r *config.Route, of *terms, path string) error {
	var names []string
	switch {
	case r.Refuse:
		return nil
	case of.cfg.ACME.Given():
		names = config.Texts(of.cfg.ACME.Domains)
	case of.files == nil:
		return nil
	default:
		for _, info := range of.files.Certificates() {
			names = append(names, info.Names...)
		}
	}
	known := newNameSet(names)
	for i, word := range r.Match.SNI {
		if !known.meets(word.Text) {
			return located(word.Pos, fmt.Errorf("%s.match.sni[%d]: no certificate is for %q; those that there are, are for %s", path, i, word.Text, strings.Join(names, ", ")))
		}
	}
	return nil
}

// A nameSet is names and patterns, and what lies above each: ".example.com" for both a.example.com and *.example.com.
type nameSet struct{ names, above map[string]bool }

func newNameSet(texts []string) nameSet {
	set := nameSet{make(map[string]bool), make(map[string]bool)}
	for _, text := range texts {
		if p, err := servername.ParsePattern(text); err == nil {
			set.names[p.String()] = true
			set.above[above(p.String())] = true
		}
	}
	return set
}

// meets reports whether a name may match both the pattern and something in the set.
func (s nameSet) meets(text string) bool {
	p, err := servername.ParsePattern(text)
	if err != nil {
		return false
	}
	name := p.String()
	return s.names[name] || s.names["*"+above(name)] || strings.HasPrefix(name, "*") && s.above[above(name)]
}

// above returns a name without its first label.
func above(name string) string {
	if dot := strings.IndexByte(name, '.'); dot >= 0 {
		return name[dot:]
	}
	return ""
}

const maxRoots = 4 << 20 // bytes: a system's are a quarter of a MiB

// rootsOf reads whom to believe; nil, for whom the system believes, if no file is named.
func rootsOf(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := watch.ReadFile(file, maxRoots)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: no certificate in it", file)
	}
	return roots, nil
}

// located puts a position before an error.
func located(pos config.Position, err error) error { return fmt.Errorf("%s: %w", pos, err) }

// developmentCA returns the development CA, the same for all listeners. Where there
// is no folder to keep it in it lives as long as the process.
func (f *front) developmentCA() (*certs.CA, error) {
	if f.ca != nil {
		return f.ca, nil
	}
	dir, err := f.env.developmentDir()
	if err != nil {
		f.log.Warn("the development CA is kept in memory only", "err", err)
	}
	if f.env.lookOnly && !certs.HasDevelopmentCA(dir) {
		dir = ""
	}
	ca, err := certs.DevelopmentCA(dir)
	if cannotKeep(err) {
		f.log.Warn("the development CA is kept in memory only", "err", err)
		ca, err = certs.DevelopmentCA("")
	}
	if err != nil {
		return nil, err
	}
	f.ca = ca
	return ca, nil
}

// cannotKeep reports whether the folder is of no use, as that of a service's user
// often is; a CA in it that is no good is another matter.
func cannotKeep(err error) bool {
	for _, reason := range []error{os.ErrPermission, syscall.EROFS, syscall.ENOTDIR, syscall.ENOSPC} {
		if errors.Is(err, reason) {
			return true
		}
	}
	return false
}
