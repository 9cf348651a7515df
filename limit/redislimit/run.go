package redislimit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/rueidis"
)

const (
	mostTold    = 256 // keys in a round trip: with as many claims a script takes Redis a millisecond or two
	mostInATurn = 256 // claims in a round trip

	keep    = time.Hour        // how long Redis keeps counts that nobody speaks of
	refresh = 20 * time.Minute // how often they are spoken of
)

// Run shares the limits until ctx ends, and then takes back what this machine counts. It returns nil. It is
// called once at a time.
func (l *Limits) Run(ctx context.Context) error {
	r := &run{Limits: l, line: line{client: l.Client, reach: l.Reach}}
	l.mu.Lock()
	if l.running {
		l.mu.Unlock()
		return errors.New("redislimit: it is running already")
	}
	l.running, l.wake = true, make(chan struct{}, 1)
	l.mu.Unlock()
	defer r.leave()
	for r.join(ctx) {
		err := r.share(ctx)
		if ctx.Err() == nil {
			r.end(err)
		}
	}
	return nil
}

// A run is what the goroutine of Run knows.
type run struct {
	*Limits
	line

	name    string    // of this life
	tried   time.Time // when it last tried to begin one; zero if it may at once
	renewed time.Time // the lease
	breaks  int       // how often one has ended without Redis ailing, in a second
	broken  time.Time // when that second began
}

var errForgotten = errors.New("it forgets this machine again and again")

// mostBreaks is how often in a second a life may end as if nothing had been. A client that has lost its
// server may find that out of four connections, one after the other.
const mostBreaks = 8

// end decides what the end of a life means. Redis may have been emptied, or a connection be
// gone, as an idle one is at times: then who waits is asked about again in the next life, at once. Or Redis
// ails.
func (r *run) end(err error) {
	now := time.Now()
	if now.Sub(r.broken) >= patience {
		r.broken, r.breaks = now, 0
	}
	_, refused := rueidis.IsRedisErr(err)
	if r.breaks++; refused || errors.Is(err, ErrLate) || r.health.err() != nil || r.breaks > mostBreaks {
		r.fail(err)
		return
	}
	r.tried = time.Time{}
}

// join begins a life, as soon as Redis lets it. It returns false when ctx has ended. Whatever went before is to be out
// of the way first: its script might end up being run after this one's.
func (r *run) join(ctx context.Context) bool {
	for {
		if !r.line.free(ctx) || !pause(ctx, time.Until(r.tried.Add(patience))) {
			return false
		}
		r.tried = time.Now()
		name := rand.Text()[:13] // 65 bits
		_, err := r.line.run(ctx, r.timeout(), joinScript, []string{r.live()}, []string{r.name, name, milliseconds(r.lease())})
		if err != nil {
			if ctx.Err() == nil {
				r.end(err)
			}
			continue
		}
		r.name, r.renewed = name, r.tried
		r.mu.Lock()
		r.counts.life = name
		r.mu.Unlock()
		r.health.set(nil, r.Changed)
		return true
	}
}

// pause returns false if ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (l *Limits) live() string { return tagged(l.Prefix, "live") }

// fail has all who wait decide alone, and who comes from now on.
func (r *run) fail(err error) {
	if !errors.Is(err, ErrLate) {
		err = fmt.Errorf("redislimit: %w", err)
	}
	r.health.set(err, r.Changed)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dismissLocked(r.waiting, err)
	r.waiting = nil
}

func (l *Limits) dismissLocked(asks []*ask, err error) {
	for _, a := range asks {
		if !a.over {
			l.overLocked(a, -1, err)
		}
	}
}

// share has one round trip after the other while there is something to say, until Redis ails or ctx ends.
func (r *run) share(ctx context.Context) error {
	every := r.lease() / 3
	beat := time.NewTimer(every)
	defer beat.Stop()
	for {
		t, more := r.turn(every)
		if t != nil {
			answers, err := r.line.run(ctx, r.timeout(), turnScript, t.keys, t.args)
			if err := r.settle(t, answers, err); err != nil {
				return err
			}
		}
		if more {
			continue
		}
		beat.Reset(max(0, time.Until(r.renewed.Add(every))))
		select {
		case <-r.wake:
		case <-beat.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// A turn is what is said in one round trip.
type turn struct {
	keys, args []string
	told       []*count
	asks       []*ask
	began      time.Time
	renews     bool
}

// turn gathers what there is to say, nil if there is nothing. There may be more than what fits.
func (r *run) turn(every time.Duration) (t *turn, more bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	t = &turn{began: now, renews: now.Sub(r.renewed) >= every}
	lease := "0"
	if t.renews {
		lease = milliseconds(r.lease())
	}
	t.keys = append(t.keys, r.live())
	t.args = append(t.args, r.name, lease, milliseconds(keep), "")
	for len(t.told) < mostTold {
		n, again := r.counts.next(now, refresh)
		if n == nil {
			break
		}
		t.told, t.keys, t.args = append(t.told, n), append(t.keys, n.key), append(t.args, strconv.Itoa(n.open), flag(again))
	}
	t.args[3] = strconv.Itoa(len(t.told))
	r.waiting = t.take(r.waiting, &r.counts)
	if len(t.told)+len(t.asks) == 0 && !t.renews {
		return nil, false
	}
	r.stats.RoundTrips++
	return t, len(r.waiting) > 0 || len(t.told) == mostTold
}

func flag(is bool) string {
	if is {
		return "1"
	}
	return "0"
}

// take puts in as many of those that wait as fit, and returns the rest.
func (t *turn) take(waiting []*ask, counts *counts) (rest []*ask) {
	for claims, n := 0, 0; n < len(waiting); n++ {
		a := waiting[n]
		if claims += len(a.claims); claims > mostInATurn {
			return append([]*ask(nil), waiting[n:]...)
		}
		if !a.over {
			t.asks = append(t.asks, a)
			t.say(a, counts)
		}
	}
	return nil
}

func (t *turn) say(a *ask, counts *counts) {
	t.args = append(t.args, strconv.Itoa(len(a.claims)))
	for _, c := range a.claims {
		t.args = append(t.args, strconv.Itoa(c.most), strconv.Itoa(counts.open(c.openKey)), microseconds(c.interval), microseconds(c.span))
		if c.most > 0 {
			t.keys = append(t.keys, c.openKey)
		}
		if c.interval > 0 {
			t.keys = append(t.keys, c.rateKey)
		}
	}
}

// settle hands out the answers. If there are none, those who wait for them are the first of the next turn, if there is
// one in time.
func (r *run) settle(t *turn, answers []int64, err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil:
	case len(answers) == 1 && answers[0] == 0:
		err = errForgotten
	case len(answers) != 1+2*len(t.asks):
		err = fmt.Errorf("it gives %d numbers for the answers to %d questions", len(answers), len(t.asks))
	}
	if err != nil {
		r.waiting = append(t.asks, r.waiting...)
		return err
	}
	if t.renews {
		r.renewed = t.began
	}
	for i, a := range t.asks {
		r.answerLocked(a, answers[1+2*i], time.Duration(answers[2+2*i])*time.Microsecond, t.began)
	}
	for _, n := range t.told {
		r.counts.settle(n)
	}
	return nil
}

// answerLocked hands out one answer. What was granted to somebody who has given up is given back.
func (l *Limits) answerLocked(a *ask, refused int64, wait time.Duration, began time.Time) {
	if refused < 0 {
		for _, c := range a.claims {
			if c.most > 0 {
				l.counts.granted(c.openKey, !a.over)
			}
		}
	} else if wait > 0 {
		l.refused.add(a.claims[refused].rateKey, began.Add(wait), time.Now())
	}
	if !a.over {
		l.overLocked(a, int(max(refused, -1)), nil)
	}
}

// leave has this machine count for nothing, and who waits decide alone.
func (r *run) leave() {
	r.mu.Lock()
	r.running = false
	r.dismissLocked(r.waiting, ErrNotRunning)
	r.waiting = nil
	r.mu.Unlock()
	well := r.health.err() == nil
	r.health.end()
	r.line.free(context.Background())
	if well {
		r.line.do(context.Background(), r.timeout(), func(ctx context.Context, client rueidis.Client) rueidis.RedisResult { //nolint:errcheck // its lease ends by itself
			return client.Do(ctx, client.B().Zrem().Key(r.live()).Member(r.name).Build())
		})
		r.line.free(context.Background())
	}
}
