package certs

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levee-net/levee/internal/watch"
)

// Tickets are the keys of session tickets, by which clients resume a session without
// a full handshake. A key serves for Rotate, and tickets that were made with it are
// taken for twice as long after that; none longer than 7 days. A ticket is good for one
// server name, under one [Server.Context] and one policy for clients.
//
// The zero value has random keys of its own. With a File or Secret there must be a Load;
// until then there are no tickets. The fields must not be changed after that. Methods may be
// called from several goroutines.
type Tickets struct {
	// File is a secret that several processes share, so that a client may resume at any
	// of them: 32 or more random bytes, in whatever form (head -c 32 /dev/urandom). The
	// keys are derived from it and from the time (HKDF, RFC 5869), so the processes agree
	// without talking, as long as their Rotate is the same and their clocks are not
	// further apart than that.
	//
	// Whoever gets hold of it can read what TLS 1.2 connections that he has recorded said
	// (of TLS 1.3 he learns nothing) and resume sessions that never were. So keep it from
	// others and change it now and then, at best daily: Watch notices, and tickets from
	// before are not taken any more, which costs their clients a full handshake.
	File string

	// Secret, if it is set, takes the place of File: it returns what several processes
	// share, from wherever they do, as it is now. Load calls it and, every Interval, Watch.
	// It has 5 seconds.
	Secret func(ctx context.Context) ([]byte, error)

	// Rotate is for how long a key makes tickets. Zero means 8 hours; negative means that
	// there are no tickets.
	Rotate time.Duration

	// Interval is how often Watch reads the file when nothing seems to happen in its
	// folder, or asks Secret. Zero means 10 seconds, negative never.
	Interval time.Duration

	// Problem, if it is set, is told what is wrong, once: again only when it has
	// been right meanwhile. What keeps Watch from loading the secret is an [ErrKept],
	// unless Secret has never answered yet.
	Problem func(error)

	problems news
	secret   atomic.Pointer[[]byte] // the shared one

	current atomic.Pointer[period]
	mu      sync.Mutex
	random  map[int64][]byte // seeds, if nothing is shared
}

const (
	defaultRotate = 8 * time.Hour
	keptKeys      = 2  // that make no tickets any more
	seedSize      = 32 // bytes
	minSecret     = 32
	maxSecret     = 64 << 10

	secretTimeout  = 5 * time.Second // of Secret
	secretInterval = 10 * time.Second
)

// share reports whether the keys are not this process's alone.
func (t *Tickets) share() bool { return t.File != "" || t.Secret != nil }

// Load reads the file, or asks Secret. If that is missing or too short, the secret stays
// what it was.
func (t *Tickets) Load() error {
	if !t.share() {
		return nil
	}
	warnings, err := t.read()
	if err != nil {
		err = fmt.Errorf("session ticket secret: %w", err)
	}
	t.problems.looked(t.Problem, warnings, err)
	return err
}

// Watch reads the file again whenever it may have changed, or asks Secret, until ctx ends;
// it returns ctx's error.
func (t *Tickets) Watch(ctx context.Context) error {
	tell := func(err error) { t.problems.tell(t.Problem, err) }
	load := func() error {
		err := t.Load()
		if t.Secret != nil && t.secret.Load() == nil {
			return err // and nothing is kept
		}
		return kept(err)
	}
	switch {
	case t.Secret != nil:
		return ask(ctx, t.Interval, func() { tell(load()) })
	case t.File != "":
		return watch.Run(ctx, []string{t.File}, t.Interval, tell, load)
	}
	<-ctx.Done()
	return ctx.Err()
}

// ask calls look, and again every interval until ctx ends; it returns ctx's error.
func ask(ctx context.Context, interval time.Duration, look func()) error {
	var again <-chan time.Time
	if interval >= 0 {
		ticker := time.NewTicker(cmp.Or(interval, secretInterval))
		defer ticker.Stop()
		again = ticker.C
	}
	for {
		look()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-again:
		}
	}
}

func (t *Tickets) read() (warnings []error, err error) {
	secret, where, err := t.shared()
	switch {
	case err != nil:
		return nil, err
	case len(secret) < minSecret:
		return nil, fmt.Errorf("%s: %d bytes, where there should be at least %d", where, len(secret), minSecret)
	case !varied(secret):
		return nil, fmt.Errorf("%s: not random", where)
	}
	if info, err := os.Stat(t.File); err == nil && t.Secret == nil && readableByAll(info) {
		warnings = append(warnings, fmt.Errorf("session ticket secret %s can be read by every user (mode %04o)", t.File, info.Mode().Perm()))
	}
	if last := t.secret.Load(); last == nil || string(*last) != string(secret) {
		t.secret.Store(&secret)
	}
	return warnings, nil
}

// shared returns the shared secret, and what errors call the place it is from.
func (t *Tickets) shared() (secret []byte, where string, err error) {
	if t.Secret == nil {
		secret, err = watch.ReadFile(t.File, maxSecret)
		return secret, t.File, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), secretTimeout)
	defer cancel()
	secret, err = t.Secret(ctx)
	return bytes.Clone(secret), "the shared secret", err
}

// varied reports whether there are 8 different bytes: that 32 random hex digits are
// fewer does not happen, and a file of zeros would let anybody in.
func varied(secret []byte) bool {
	seen := make(map[byte]bool)
	for _, b := range secret {
		seen[b] = true
	}
	return len(seen) >= 8
}

func (t *Tickets) off() bool { return t.Rotate < 0 }

func (t *Tickets) rotate() time.Duration { return cmp.Or(t.Rotate, defaultRotate) }

// epoch returns the number of the period that a time is in.
func (t *Tickets) epoch(now time.Time) int64 { return now.UnixNano() / int64(t.rotate()) }

// A period is a time during which the keys stay the same. It never changes.
type period struct {
	epoch  int64
	secret *[]byte
	seeds  [][]byte // the first is for new tickets; keys are derived from them
}

// at returns the period of a time, the same one until something changes; nil if there
// are no tickets.
func (t *Tickets) at(now time.Time) *period {
	secret := t.secret.Load()
	if t.off() || t.share() && secret == nil {
		return nil
	}
	epoch := t.epoch(now)
	if p := t.current.Load(); p != nil && p.epoch == epoch && p.secret == secret {
		return p
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.current.Load(); p != nil && p.epoch == epoch && p.secret == secret {
		return p
	}
	p := &period{epoch: epoch, secret: secret}
	if secret == nil {
		p.seeds = t.randomSeeds(epoch)
	} else {
		epochs := []int64{epoch, epoch + 1} // the next is that of a process whose clock is ahead
		for kept := range int64(keptKeys) {
			epochs = append(epochs, epoch-1-kept)
		}
		for _, e := range epochs {
			p.seeds = append(p.seeds, derive(*secret, "levee session tickets, epoch "+strconv.FormatInt(e, 10)))
		}
	}
	t.current.Store(p)
	return p
}

// randomSeeds makes the epoch's seed, and forgets those that are too old: nobody can
// find them out then.
func (t *Tickets) randomSeeds(epoch int64) [][]byte {
	kept := make(map[int64][]byte)
	var seeds [][]byte
	for e := epoch; e >= epoch-keptKeys; e-- {
		seed := t.random[e]
		if seed == nil && e == epoch {
			seed = make([]byte, seedSize)
			rand.Read(seed) // never fails
		}
		if seed != nil {
			kept[e] = seed
			seeds = append(seeds, seed)
		}
	}
	t.random = kept
	return seeds
}

// keys returns crypto/tls's keys for a purpose.
func (p *period) keys(purpose string) [][32]byte {
	keys := make([][32]byte, 0, len(p.seeds))
	for _, seed := range p.seeds {
		keys = append(keys, [32]byte(derive(seed, purpose)))
	}
	return keys
}

func derive(secret []byte, info string) []byte {
	key, err := hkdf.Key(sha256.New, secret, nil, info, 32)
	if err != nil {
		panic(errors.Join(errors.New("HKDF of 32 bytes"), err)) // only for lengths, or in FIPS mode secrets, that are not these
	}
	return key
}
