package acme

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"
)

const (
	atOnce       = 4                // orders: an authority's limits are per account
	orderTimeout = 10 * time.Minute // a DNS record takes its time
	mostRetry    = time.Hour        // 6 failures in the first hour: Let's Encrypt allows 5, and another every 12 minutes
	ariTimeout   = 30 * time.Second
	impatience   = 2 * time.Second // between looks for a certificate that another machine may have by now
)

// Run has certificates issued and renewed until ctx ends; it returns ctx's error, once all
// that it began has ended. Before the first call of Load it loads, and returns what is
// wrong. It must not be called while it runs.
func (s *Source) Run(ctx context.Context) error {
	if err := s.Load(); err != nil {
		return err
	}
	r := newRun(s)
	var keepers sync.WaitGroup
	for _, n := range r.names {
		keepers.Go(func() { r.keep(ctx, n) }) // until ctx ends
	}
	keepers.Wait()
	r.cache.Stop()
	return ctx.Err()
}

// A run is a Source at work.
type run struct {
	*state
	source *Source
	slots  chan struct{} // taken by orders
	cache  *certmagic.Cache
	magic  *certmagic.Config
}

// newRun puts certmagic to use for the parts of it that are wanted: certificates in a
// storage, one order at a time for a name among all machines, and stapled responses. When
// to order is decided here, where it can be seen; its own maintenance is kept from it.
func newRun(s *Source) *run {
	r := &run{state: s.loaded.Load(), source: s, slots: make(chan struct{}, atOnce)}
	logger := zap.New(bridge{s.logger()})
	r.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert:   func(certmagic.Certificate) (*certmagic.Config, error) { return r.magic, nil },
		RenewCheckInterval: 50 * 365 * 24 * time.Hour, // never
		Logger:             logger,
	})
	r.magic = certmagic.New(r.cache, certmagic.Config{
		Issuers:    []certmagic.Issuer{r.authority},
		Storage:    r.storage,
		KeySource:  certmagic.StandardKeyGenerator{KeyType: certmagic.P256},
		DisableARI: true,                                                       // it is asked here
		OCSP:       certmagic.OCSPConfig{HTTPProxy: http.ProxyFromEnvironment}, // with which it has a time limit
		OnEvent:    r.event,
		Logger:     logger,
	})
	return r
}

// keep looks after a name.
func (r *run) keep(ctx context.Context, n *name) {
	for ctx.Err() == nil {
		timer := time.NewTimer(time.Until(r.look(ctx, n)))
		select {
		case <-ctx.Done():
		case <-n.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// look does what is due for a name, and returns when to look again.
func (r *run) look(ctx context.Context, n *name) time.Time {
	err := r.take(ctx, n)
	if n.due(time.Now()) {
		r.order(ctx, n)
	} else if err != nil && n.cert.Load() != nil { // without one, why there is none has been told
		r.tell(ctx, fmt.Errorf("certificate for %s: %w", n.text, err))
	}
	r.staple(ctx, n)
	r.consult(ctx, n)
	wait := r.interval()
	if n.cert.Load() == nil {
		wait = min(wait, impatience)
	}
	next := time.Now().Add(wait)
	if order := n.next(); order.Before(next) {
		next = order
	}
	return next
}

func (r *run) interval() time.Duration {
	if r.source.Interval > 0 {
		return r.source.Interval
	}
	return 10 * time.Minute
}

// take puts in force what the storage holds for a name.
func (r *run) take(ctx context.Context, n *name) error {
	changed, err := r.read(ctx, n)
	if changed && r.source.Changed != nil {
		r.source.Changed()
	}
	return err
}

// staple has certmagic's cache, which looks after responses, hold the certificate that is
// in force, and puts it in force with what is stapled to it there.
func (r *run) staple(ctx context.Context, n *name) {
	cert := n.cert.Load()
	if cert == nil {
		return
	}
	var stale []string
	var found *tls.Certificate
	for _, c := range r.cache.AllMatchingCertificates(n.text) {
		switch {
		case !slices.Contains(c.Names, n.text): // a wildcard's
		case c.Leaf.Equal(cert.Leaf):
			found = &c.Certificate
		default:
			stale = append(stale, c.Hash())
		}
	}
	r.cache.Remove(stale)
	if found == nil {
		c, err := r.magic.CacheManagedCertificate(ctx, n.text)
		if err != nil || !c.Leaf.Equal(cert.Leaf) {
			return // replaced this very moment: there will be another look
		}
		found = &c.Certificate
	}
	if !bytes.Equal(found.OCSPStaple, cert.OCSPStaple) {
		n.cert.Store(found)
	}
}

// tell tells what goes wrong, unless it is that the end has come.
func (r *run) tell(ctx context.Context, err error) {
	if ctx.Err() == nil {
		r.source.tell(err)
	}
}

// An intent is what an order is for; it travels in the order's context.
type intent struct {
	replaces *x509.Certificate // nil for a first one
	again    bool              // the last order failed
	issued   bool              // so it came to pass
}

type intentKey struct{}

func intentOf(ctx context.Context) *intent {
	i, _ := ctx.Value(intentKey{}).(*intent)
	return i
}

// order has a certificate issued, or finds that another machine has.
func (r *run) order(ctx context.Context, n *name) {
	select {
	case r.slots <- struct{}{}:
	case <-ctx.Done():
		return
	}
	defer func() { <-r.slots }()
	i := &intent{again: n.begin()}
	err := r.tryOrder(ctx, n, i)
	if ctx.Err() != nil {
		err = nil // it was cut short; there will be nobody to try again
	}
	if wait := n.ordered(err, i.issued, r.source.Retry); err != nil {
		r.tell(ctx, fmt.Errorf("certificate for %s: %w; next try in %s", n.text, err, wait.Round(100*time.Millisecond)))
	}
}

func (r *run) tryOrder(ctx context.Context, n *name, i *intent) error {
	before := n.cert.Load()
	if before != nil {
		i.replaces = before.Leaf
	}
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, intentKey{}, i), orderTimeout)
	defer cancel()
	err := r.magic.RenewCertSync(ctx, n.text, true) // or obtains, if there is nothing to renew
	if err != nil && !errors.Is(err, errRenewedElsewhere) {
		return err
	}
	if err := r.take(ctx, n); err != nil {
		return err
	}
	if n.cert.Load() == before {
		return errors.New("the storage does not have what was to be there now")
	}
	return nil
}

var errRenewedElsewhere = errors.New("another machine has renewed it")

// event hears what certmagic does. Before an order it holds the name's lock, and can be
// kept from what is not ours to do, or done already.
func (r *run) event(ctx context.Context, event string, data map[string]any) error {
	switch event {
	case "cert_obtaining":
		return r.mayOrder(ctx, data["identifier"])
	case "cert_ocsp_revoked":
		subjects, _ := data["subjects"].([]string)
		for _, n := range r.names {
			if slices.Contains(subjects, n.text) {
				n.revoke()
				r.tell(ctx, fmt.Errorf("certificate for %s: the authority says that it is revoked", n.text))
			}
		}
	}
	return nil
}

// mayOrder says no, and that once is enough, if certmagic wants to order by itself, and if
// what is to be replaced has been.
func (r *run) mayOrder(ctx context.Context, identifier any) error {
	i := intentOf(ctx)
	if i == nil {
		return certmagic.ErrNoRetry{Err: errors.New("not asked to")}
	}
	if i.replaces == nil {
		return nil
	}
	text, _ := identifier.(string)
	chain, err := r.storage.Load(ctx, certmagic.StorageKeys.SiteCert(r.authority.key, text))
	if err != nil {
		return nil //nolint:nilerr // nothing there: there is something to order
	}
	if block, _ := pem.Decode(chain); block != nil && !bytes.Equal(block.Bytes, i.replaces.Raw) {
		return certmagic.ErrNoRetry{Err: errRenewedElsewhere}
	}
	return nil
}

// consult asks the authority when it would have the certificate renewed, if it is time to
// ask. One that does not say is no problem: there is a time without it.
func (r *run) consult(ctx context.Context, n *name) {
	cert := n.cert.Load()
	if cert == nil || !n.shouldAsk(time.Now()) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, ariTimeout)
	defer cancel()
	info, err := r.authority.client.GetRenewalInfo(ctx, cert.Leaf)
	if err != nil {
		r.source.logger().Debug("no renewal information", "name", n.text, "error", err)
		info = acme.RenewalInfo{}
	}
	n.advised(info, time.Now())
}

// A course is what happens to a name's certificate, and when.
type course struct {
	ordering       bool
	next           time.Time // when an order is due
	err            error
	issued, failed uint64

	failures int       // in a row
	retry    time.Time // not before that
	last     time.Time // the last order that succeeded
	advice   acme.RenewalInfo
	ask      time.Time // for advice
}

// took begins the course of another certificate.
func (c *course) took() { c.advice, c.ask = acme.RenewalInfo{}, time.Time{} }

func (n *name) due(now time.Time) bool { return !now.Before(n.next()) }

// next returns when an order is due.
func (n *name) next() time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := &n.course
	c.next = time.Time{}
	if cert := n.cert.Load(); cert != nil && !n.revoked {
		c.next = renewal(cert.Leaf, c.advice)
		if spacing := c.last.Add(spacing(cert.Leaf)); !c.last.IsZero() && c.next.Before(spacing) {
			c.next = spacing // whatever the authority says, there is no storm of orders
		}
	}
	if c.next.Before(c.retry) {
		c.next = c.retry
	}
	return c.next
}

// renewal returns when a certificate is to be renewed.
func renewal(leaf *x509.Certificate, advice acme.RenewalInfo) time.Time {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	at := leaf.NotAfter.Add(-life / 3)
	if life < 10*24*time.Hour {
		at = leaf.NotAfter.Add(-life / 2)
	}
	if !advice.SelectedTime.IsZero() {
		at = advice.SelectedTime
	}
	if latest := leaf.NotAfter.Add(-life / 20); at.After(latest) {
		return latest
	}
	return at
}

// spacing is the least time between two orders for a name: an hour, and less for
// certificates of few hours.
func spacing(leaf *x509.Certificate) time.Duration {
	return min(time.Hour, leaf.NotAfter.Sub(leaf.NotBefore)/4)
}

func (n *name) begin() (again bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.course.ordering = true
	return n.course.failures > 0
}

// ordered records how an order ended, and returns how long to wait after one that failed.
func (n *name) ordered(err error, issued bool, first time.Duration) (wait time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := &n.course
	c.ordering, c.err = false, err
	if issued {
		c.issued++
	}
	if err == nil {
		c.failures, c.retry, c.last = 0, time.Time{}, time.Now()
		return 0
	}
	wait = backOff(c.failures, first)
	c.failures++
	c.failed++
	c.retry = time.Now().Add(wait)
	return wait
}

// backOff doubles with each failure before, and has a tenth of chance in it.
func backOff(before int, first time.Duration) time.Duration {
	if first <= 0 {
		first = time.Minute
	}
	wait := first
	for range before {
		if wait = min(2*wait, mostRetry); wait == mostRetry {
			break
		}
	}
	return time.Duration(float64(wait) * (0.9 + 0.2*rand.Float64())) //nolint:gosec // not a secret
}

func (n *name) revoke() {
	n.mu.Lock()
	n.revoked = true
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default: // it will look anyway
	}
}

func (n *name) shouldAsk(now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !now.Before(n.course.ask)
}

// advised keeps an authority's advice. A time within a window is chosen once (RFC 9773
// section 4.2).
func (n *name) advised(info acme.RenewalInfo, now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := &n.course
	if info.HasWindow() && info.SameWindow(c.advice) {
		info.SelectedTime = c.advice.SelectedTime
	}
	c.advice = info
	wait := 6 * time.Hour
	if info.RetryAfter != nil { // section 4.3.2: a limit to what is sensible, one minute to one day
		wait = min(max(info.RetryAfter.Sub(now), time.Minute), 24*time.Hour)
	}
	c.ask = now.Add(wait)
}
