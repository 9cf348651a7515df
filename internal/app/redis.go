package app

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/redis/rueidis"

	"github.com/levee-net/levee/certs/acme/redisstorage"
	"github.com/levee-net/levee/internal/config"
)

const (
	redisTimeout = 5 * time.Second // to connect, and for an answer

	sharedInterval = time.Minute // between looks at what others may have changed

	ticketsKey      = "levee:tickets"
	ticketsLifetime = 24 * time.Hour // of a secret: what is recorded until then it could open, over TLS 1.2
)

// A sharedStore is the Redis that several machines share. It is reached when it is first needed, and again later if
// that fails: levee serves without it as well.
type sharedStore struct {
	options rueidis.ClientOption

	mu       sync.Mutex
	reaching *reaching // the last try; nil if there was none, or it has failed
}

// A reaching is a try to connect, which all who need the connection wait for.
type reaching struct {
	over    chan struct{} // closed when the rest is settled
	client  rueidis.Client
	storage *redisstorage.Storage
	err     error
}

// newSharedStore returns nil if there is none.
func newSharedStore(cfg *config.Redis) (*sharedStore, error) {
	if !cfg.Given() {
		return nil, nil
	}
	s := &sharedStore{options: rueidis.ClientOption{
		InitAddress: []string{cfg.Address}, ForceSingleClient: true, DisableCache: true,
		Username: cfg.Username, Password: cfg.Password, ClientName: "levee",
		Dialer: net.Dialer{Timeout: redisTimeout}, ConnWriteTimeout: redisTimeout,
	}}
	if path, ok := strings.CutPrefix(cfg.Address, "unix:"); ok {
		s.options.InitAddress = []string{path}
		s.options.DialCtxFn = func(ctx context.Context, path string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
			return d.DialContext(ctx, "unix", path)
		}
	}
	if cfg.TLS {
		host, _, _ := net.SplitHostPort(cfg.Address) // a Unix socket has none
		s.options.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
		var err error
		if s.options.TLSConfig.RootCAs, err = rootsOf(cfg.CA); err != nil {
			return nil, located(cfg.Pos, fmt.Errorf("redis.ca: %w", err))
		}
	}
	return s, nil
}

// reach returns a connection, which is made if there is none yet. Who cannot wait for that until ctx ends goes without.
func (s *sharedStore) reach(ctx context.Context) (*reaching, error) {
	s.mu.Lock()
	r := s.reaching
	if r == nil {
		r = &reaching{over: make(chan struct{})}
		s.reaching = r
		go s.connect(r) // ends within two times redisTimeout
	}
	s.mu.Unlock()
	select {
	case <-r.over:
		return r, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("redis %s: %w", s.options.InitAddress[0], ctx.Err())
	}
}

// client is the connection to Redis for whoever needs no more of it.
func (s *sharedStore) client(ctx context.Context) (rueidis.Client, error) {
	r, err := s.reach(ctx)
	if err != nil {
		return nil, err
	}
	return r.client, nil
}

func (s *sharedStore) connect(r *reaching) {
	defer close(r.over)
	if r.client, r.err = rueidis.NewClient(s.options); r.err == nil {
		r.storage = &redisstorage.Storage{Client: r.client}
		return
	}
	r.err = fmt.Errorf("redis %s: %w", s.options.InitAddress[0], r.err)
	s.mu.Lock()
	s.reaching = nil // who comes next tries again
	s.mu.Unlock()
}

// close closes the connection, and waits for one that is being made.
func (s *sharedStore) close() {
	if s == nil {
		return
	}
	s.mu.Lock()
	r := s.reaching
	s.mu.Unlock()
	if r == nil {
		return
	}
	if <-r.over; r.err == nil {
		r.client.Close()
	}
}

// ticketSecret returns the secret that session tickets are derived from: the one that is there, or one's own if it is
// the first.
func (s *sharedStore) ticketSecret(ctx context.Context) ([]byte, error) {
	client, err := s.client(ctx)
	if err != nil {
		return nil, err
	}
	own := make([]byte, 32)
	rand.Read(own) // never fails
	set := client.B().Set().Key(ticketsKey).Value(rueidis.BinaryString(own)).Nx().Ex(ticketsLifetime).Build()
	if err := client.Do(ctx, set).Error(); err != nil && !rueidis.IsRedisNil(err) {
		return nil, fmt.Errorf("redis: %w", err)
	}
	secret, err := client.Do(ctx, client.B().Get().Key(ticketsKey).Build()).AsBytes()
	if err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	return secret, nil
}

// certificates is the store as ACME keeps its things there.
func (s *sharedStore) certificates() certmagic.Storage { return sharedCertificates{s} }

// sharedCertificates are a redisstorage.Storage that is reached when it is needed.
type sharedCertificates struct{ store *sharedStore }

func (s sharedCertificates) reach(ctx context.Context) (*redisstorage.Storage, error) {
	r, err := s.store.reach(ctx)
	if err != nil {
		return nil, err
	}
	return r.storage, nil
}

func (s sharedCertificates) Store(ctx context.Context, key string, value []byte) error {
	storage, err := s.reach(ctx)
	if err != nil {
		return err
	}
	return storage.Store(ctx, key, value)
}

func (s sharedCertificates) Load(ctx context.Context, key string) ([]byte, error) {
	storage, err := s.reach(ctx)
	if err != nil {
		return nil, err
	}
	return storage.Load(ctx, key)
}

func (s sharedCertificates) Delete(ctx context.Context, key string) error {
	storage, err := s.reach(ctx)
	if err != nil {
		return err
	}
	return storage.Delete(ctx, key)
}

func (s sharedCertificates) Exists(ctx context.Context, key string) bool {
	storage, err := s.reach(ctx)
	return err == nil && storage.Exists(ctx, key)
}

func (s sharedCertificates) List(ctx context.Context, folder string, recursive bool) ([]string, error) {
	storage, err := s.reach(ctx)
	if err != nil {
		return nil, err
	}
	return storage.List(ctx, folder, recursive)
}

func (s sharedCertificates) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	storage, err := s.reach(ctx)
	if err != nil {
		return certmagic.KeyInfo{}, err
	}
	return storage.Stat(ctx, key)
}

func (s sharedCertificates) Lock(ctx context.Context, name string) error {
	storage, err := s.reach(ctx)
	if err != nil {
		return err
	}
	return storage.Lock(ctx, name)
}

func (s sharedCertificates) TryLock(ctx context.Context, name string) (bool, error) {
	storage, err := s.reach(ctx)
	if err != nil {
		return false, err
	}
	return storage.TryLock(ctx, name)
}

func (s sharedCertificates) RenewLockLease(ctx context.Context, name string, lease time.Duration) error {
	storage, err := s.reach(ctx)
	if err != nil {
		return err
	}
	return storage.RenewLockLease(ctx, name, lease)
}

func (s sharedCertificates) Unlock(ctx context.Context, name string) error {
	storage, err := s.reach(ctx)
	if err != nil {
		return err
	}
	return storage.Unlock(ctx, name)
}
