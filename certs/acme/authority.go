package acme

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"path"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

// An authority is who issues certificates, to an account of ours. It is certmagic's Issuer
// in the place of its own, which would open ports 80 and 443 by itself when it has
// something to prove, and asks at the terminal for an address.
type authority struct {
	key     string // in the storage
	email   string
	eab     *EAB
	storage certmagic.Storage
	client  *acmez.Client

	mu      sync.Mutex // held while an account is looked for
	account *acme.Account
}

func newAuthority(s *Source, directory, key string, storage certmagic.Storage, solvers map[string]acmez.Solver) *authority {
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		TLSClientConfig:       &tls.Config{RootCAs: s.Roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		IdleConnTimeout:       10 * time.Second, // orders are rare
		ForceAttemptHTTP2:     true,
	}
	return &authority{
		key: key, email: s.Email, eab: s.EAB, storage: storage,
		client: &acmez.Client{
			Client: &acme.Client{
				Directory:  directory,
				UserAgent:  "levee",
				HTTPClient: &http.Client{Transport: transport, Timeout: time.Minute},
				Logger:     s.logger(),
			},
			ChallengeSolvers: solvers,
		},
	}
}

func (s *Source) logger() *slog.Logger {
	if s.Logger != nil {
		return s.Logger
	}
	return slog.New(slog.DiscardHandler)
}

// IssuerKey is certmagic's.
func (a *authority) IssuerKey() string { return a.key }

// Issue orders a certificate, with the name's lock held. An account that the authority does
// not know any more, as when a private one has been set up anew, is opened again.
func (a *authority) Issue(ctx context.Context, request *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	issued, err := a.issue(ctx, request)
	if problem, ok := errors.AsType[acme.Problem](err); ok && problem.Type == acme.ProblemTypeAccountDoesNotExist {
		if err := a.forgetAccount(ctx); err != nil {
			return nil, err
		}
		issued, err = a.issue(ctx, request)
	}
	return issued, err
}

func (a *authority) issue(ctx context.Context, request *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	account, err := a.openAccount(ctx)
	if err != nil {
		return nil, fmt.Errorf("account: %w", err)
	}
	order, err := acmez.OrderParametersFromCSR(account, request)
	if err != nil {
		return nil, err
	}
	i := intentOf(ctx)
	if i != nil && i.replaces != nil && !i.again && a.hasRenewalInfo(ctx) {
		order.Replaces = i.replaces // with which limits do not count it (RFC 9773 section 5)
	}
	chains, err := a.client.ObtainCertificate(ctx, order)
	if err != nil {
		return nil, err
	}
	if len(chains) == 0 {
		return nil, errors.New("the authority has sent no certificate")
	}
	if i != nil {
		i.issued = true
	}
	return &certmagic.IssuedCertificate{Certificate: chains[0].ChainPEM, Metadata: chains[0]}, nil
}

func (a *authority) hasRenewalInfo(ctx context.Context) bool {
	directory, err := a.client.GetDirectory(ctx)
	return err == nil && directory.RenewalInfo != ""
}

// storedAccount is an account in the storage: in one piece, so that none is without its key.
type storedAccount struct {
	Account acme.Account `json:"account"`
	Key     string       `json:"key"` // PEM
}

func (a *authority) accountKey() string {
	who := certmagic.StorageKeys.Safe(a.email)
	if who == "" {
		who = "default"
	}
	return path.Join("acme", a.key, "accounts", who+".json")
}

// openAccount returns our account, and opens one if there is none in the storage: one for
// all machines.
func (a *authority) openAccount(ctx context.Context) (acme.Account, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.account != nil {
		return *a.account, nil
	}
	account, err := a.loadAccount(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		account, err = a.openAlone(ctx)
	}
	if err == nil {
		a.account = &account
	}
	return account, err
}

func (a *authority) openAlone(ctx context.Context) (account acme.Account, err error) {
	lock := "acme_account_" + a.key
	if err := a.storage.Lock(ctx, lock); err != nil {
		return account, err
	}
	defer func() { err = errors.Join(err, a.storage.Unlock(context.WithoutCancel(ctx), lock)) }()
	if account, err = a.loadAccount(ctx); !errors.Is(err, fs.ErrNotExist) {
		return account, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return account, err
	}
	account = acme.Account{PrivateKey: key, TermsOfServiceAgreed: true} // Load has seen to that
	if a.email != "" {
		account.Contact = []string{"mailto:" + a.email}
	}
	if a.eab != nil {
		if err := account.SetExternalAccountBinding(ctx, a.client.Client, acme.EAB{KeyID: a.eab.KeyID, MACKey: a.eab.Key}); err != nil {
			return account, err
		}
	}
	if account, err = a.client.NewAccount(ctx, account); err != nil {
		return account, err
	}
	return account, a.saveAccount(ctx, account)
}

func (a *authority) loadAccount(ctx context.Context) (acme.Account, error) {
	text, err := a.storage.Load(ctx, a.accountKey())
	if err != nil {
		return acme.Account{}, err
	}
	var stored storedAccount
	if err := json.Unmarshal(text, &stored); err != nil {
		return acme.Account{}, fmt.Errorf("what is stored: %w", err)
	}
	key, err := certmagic.PEMDecodePrivateKey([]byte(stored.Key))
	if err != nil {
		return acme.Account{}, fmt.Errorf("what is stored: %w", err)
	}
	stored.Account.PrivateKey = key
	return stored.Account, nil
}

func (a *authority) saveAccount(ctx context.Context, account acme.Account) error {
	key, err := certmagic.PEMEncodePrivateKey(crypto.PrivateKey(account.PrivateKey))
	if err != nil {
		return err
	}
	text, err := json.Marshal(storedAccount{account, string(key)})
	if err != nil {
		return err
	}
	return a.storage.Store(ctx, a.accountKey(), text)
}

func (a *authority) forgetAccount(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.account = nil
	return a.storage.Delete(ctx, a.accountKey())
}
