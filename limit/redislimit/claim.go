package redislimit

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"math"
	"strconv"
	"time"

	"github.com/levee-net/levee/limit"
)

// A claim is a limit.Claim in the terms of the script.
type claim struct {
	most     int    // 0 is any number
	openKey  string // where open connections are counted
	interval float64
	span     float64 // both in microseconds: between two, and of a whole burst. 0 is any rate
	rateKey  string  // where the time is that the burst will be whole again
}

// longestSpan keeps times exact to the microsecond in Lua's numbers. It is 3 years.
const longestSpan = 1e14

// prepare leaves out nothing: the index of a claim is what the caller knows it by.
func (l *Limits) prepare(claims []limit.Claim) []claim {
	prepared := make([]claim, len(claims))
	for i, c := range claims {
		p := &prepared[i]
		if c.Most > 0 {
			p.most, p.openKey = c.Most, l.key("open", c)
		}
		if c.Rate > 0 && !math.IsInf(c.Rate, 1) { // NaN is not greater than 0 either
			burst := float64(max(c.Burst, 1))
			p.interval = min(1e6/c.Rate, longestSpan/burst)
			p.span = p.interval * burst
			p.rateKey = l.key("rate", c)
		}
	}
	return prepared
}

// longestName is how long a limit's name and a key together may be to stand in Redis as they are.
const longestName = 64

// key returns where something is kept. No two limits and keys, whatever their bytes, have the
// same one.
func (l *Limits) key(kind string, c limit.Claim) string {
	name := strconv.Itoa(len(c.Limit)) + ":" + c.Limit + ":" + c.Key
	if len(c.Limit)+len(c.Key) > longestName {
		sum := sha256.Sum256([]byte(name))
		name = "#" + hex.EncodeToString(sum[:16])
	}
	return tagged(l.Prefix, kind) + ":" + name
}

// tagged begins a key with the prefix as a hash tag: all are in one slot.
func tagged(prefix, kind string) string { return "{" + cmp.Or(prefix, "levee:limit") + "}:" + kind }

func microseconds(n float64) string { return strconv.FormatFloat(n, 'f', 3, 64) }

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// refusals are whom Redis has refused until when, by the key of the rate.
type refusals map[string]time.Time

// mostRefusals bounds what strangers can make a machine remember: it is about 3 MB.
const mostRefusals = 16_384

// first returns the first claim that is refused still, or -1.
func (r refusals) first(claims []claim, now time.Time) int {
	if len(r) == 0 {
		return -1
	}
	for i, c := range claims {
		if until, refused := r[c.rateKey]; refused {
			if now.Before(until) {
				return i
			}
			delete(r, c.rateKey)
		}
	}
	return -1
}

// add forgets those that may come again when there are too many, and if that does not help, the new one: Redis will
// refuse it once more.
func (r *refusals) add(rateKey string, until, now time.Time) {
	if *r == nil {
		*r = make(refusals)
	}
	if len(*r) >= mostRefusals {
		for key, end := range *r {
			if !now.Before(end) {
				delete(*r, key)
			}
		}
	}
	if _, known := (*r)[rateKey]; known || len(*r) < mostRefusals {
		(*r)[rateKey] = until
	}
}
