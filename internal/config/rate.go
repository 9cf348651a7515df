package config

import (
	"fmt"
	"math/big"
	"strings"
	"time"
)

// Rate is how often something may happen. The zero Rate was left out.
type Rate struct {
	N   int // negative is any number
	Per time.Duration
}

// NoRate is any rate.
var NoRate = Rate{N: -1}

// PerSecond returns how often in a second; 0 is any number.
func (r Rate) PerSecond() float64 {
	if r.N <= 0 {
		return 0
	}
	return float64(r.N) / r.Per.Seconds()
}

// Off reports whether it limits nothing.
func (r Rate) Off() bool { return r.N <= 0 }

// exceededBy reports whether the other is more.
func (r Rate) exceededBy(other Rate) bool {
	return !r.Off() && !other.Off() && other.PerSecond() > r.PerSecond()
}

func perSecond(n int) Rate { return Rate{n, time.Second} }

// burst is how many may come at once where nothing is said.
func (r Rate) burst() int {
	switch {
	case r.Off():
		return 0
	case r.Per == time.Second:
		return 2 * r.N
	}
	return r.N
}

// String returns the rate as the configuration writes it.
func (r Rate) String() string {
	switch {
	case r.N < 0:
		return "off"
	case r.N == 0:
		return ""
	}
	for _, u := range rateUnits {
		if u.per == r.Per {
			return fmt.Sprintf("%d/%s", r.N, u.word)
		}
	}
	return fmt.Sprintf("%d/%s", r.N, r.Per)
}

var rateUnits = []struct {
	word string
	per  time.Duration
}{{"s", time.Second}, {"m", time.Minute}, {"h", time.Hour}}

const maxRate = 10_000_000

func rate(p *Rate) value {
	return parsed[Rate]{
		p: p, parse: parseRate, format: Rate.String,
		wants: "a rate such as 50/s, 600/m or 10/h, or off", pattern: `^(off|[1-9][0-9]*/[smh])$`,
	}
}

func parseRate(s string) (Rate, error) {
	if s == "off" {
		return NoRate, nil
	}
	number, unit, cut := strings.Cut(s, "/")
	n, overflow, ok := natural(number)
	var per time.Duration
	for _, u := range rateUnits {
		if u.word == unit {
			per = u.per
		}
	}
	switch {
	case strings.HasPrefix(s, "-"):
		return Rate{}, fmt.Errorf("must not be negative; say off for any rate")
	case ok && n == 0 && !overflow:
		return Rate{}, fmt.Errorf("%s would let nobody in; say off for any rate", quote(s))
	case ok && !cut:
		return Rate{}, fmt.Errorf("%s has no unit; write %s/s if you mean per second", quote(s), clip(s))
	case !ok || per == 0:
		return Rate{}, fmt.Errorf("%s is not a rate; write a whole number and a unit, such as 50/s, 600/m or 10/h", quote(s))
	case overflow || n > maxRate:
		return Rate{}, fmt.Errorf("%s is too much; the most is %d; say off for any rate", quote(s), maxRate)
	}
	return Rate{n, per}, nil
}

// natural reads a whole number without a sign or leading zeros.
func natural(s string) (n int, overflow, ok bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" || len(s) > 1 && s[0] == '0' {
		return 0, false, false
	}
	if len(s) > 9 {
		return 0, true, true
	}
	for _, c := range s {
		n = 10*n + int(c-'0')
	}
	return n, false, true
}

func burst(p *int) value { return integer{p: p, min: 1, max: 10_000_000} }

// Bandwidth is how many bytes may be moved in a second, in each direction.
type Bandwidth struct {
	Pos  Position
	Up   ByteRate // from clients
	Down ByteRate // to clients
}

func (b *Bandwidth) keys() []key {
	return []key{
		{"up", optional, byteRate(&b.Up), "What comes from clients. " + byteRateDoc},
		{"down", optional, byteRate(&b.Down), "What goes to clients. " + byteRateDoc},
	}
}

const byteRateDoc = "Written like 512KiB/s (1024 bytes each) or 10MB/s (1,000,000); or off."

// Given reports whether it limits anything.
func (b *Bandwidth) Given() bool { return b.Up > 0 || b.Down > 0 }

// ByteRate is a number of bytes a second; 0 is any number.
type ByteRate int64

var byteUnits = []struct {
	word string
	size int64
}{
	{"GB", 1_000_000_000},
	{"GiB", 1 << 30},
	{"MB", 1_000_000},
	{"MiB", 1 << 20},
	{"kB", 1_000},
	{"KB", 1_000}, // as it is often written
	{"KiB", 1 << 10},
	{"B", 1},
}

// String returns the rate as the configuration writes it: in the largest unit of which it is a whole number.
func (r ByteRate) String() string {
	if r <= 0 {
		return "off"
	}
	for _, u := range byteUnits {
		if int64(r)%u.size == 0 {
			return fmt.Sprintf("%d%s/s", int64(r)/u.size, u.word)
		}
	}
	return ""
}

const (
	minByteRate = 1_000             // under that, a unit was mistaken
	maxByteRate = 1_000_000_000_000 // a terabyte
)

func byteRate(p *ByteRate) value {
	return parsed[ByteRate]{
		p: p, def: "off", parse: parseByteRate, format: ByteRate.String,
		wants: "bytes a second such as 10MB/s or 512KiB/s, or off", pattern: `^(off|[0-9]+(\.[0-9]+)?([kKMG]i?)?B/s)$`,
	}
}

func parseByteRate(s string) (ByteRate, error) {
	if s == "off" {
		return 0, nil
	}
	amount, perSecond := strings.CutSuffix(s, "/s")
	split := strings.IndexFunc(amount, func(c rune) bool { return c != '.' && (c < '0' || c > '9') })
	if split < 0 {
		split = len(amount)
	}
	number, unit := amount[:split], amount[split:]
	var size int64
	for _, u := range byteUnits {
		if u.word == unit {
			size = u.size
		}
	}
	bits := strings.HasSuffix(unit, "b") || strings.Contains(strings.ToLower(unit), "bit") || strings.HasSuffix(unit, "bps")
	switch {
	case strings.HasPrefix(s, "-"):
		return 0, fmt.Errorf("must not be negative; say off for any amount")
	case bits && fraction.MatchString(number):
		return 0, fmt.Errorf("%s counts bits; write bytes, of which each has eight, such as 10MB/s", quote(s))
	case !fraction.MatchString(number):
		return 0, notByteRate(s)
	case unit == "":
		return 0, fmt.Errorf("%s has no unit; write %sMB/s if you mean megabytes", quote(s), clip(number))
	case size == 0:
		return 0, notByteRate(s)
	case !perSecond:
		return 0, fmt.Errorf("%s is no rate; write %s/s", quote(s), clip(s))
	}
	n, ok := product(number, size)
	switch {
	case !ok || n > maxByteRate:
		return 0, fmt.Errorf("%s is too much; the most is %s; say off for any amount", quote(s), ByteRate(maxByteRate))
	case n < minByteRate:
		return 0, fmt.Errorf("%s is too little; the least is %s", quote(s), ByteRate(minByteRate))
	}
	return ByteRate(n), nil
}

func notByteRate(s string) error {
	return fmt.Errorf("%s is not an amount of bytes a second; write one such as 512KiB/s or 10MB/s", quote(s))
}

// product multiplies a decimal fraction; what is less than a byte is left away.
func product(number string, size int64) (n int64, ok bool) {
	if len(number) > 30 { // far more digits than any amount has
		return 0, false
	}
	var r big.Rat
	if _, ok := r.SetString(number); !ok {
		return 0, false
	}
	r.Mul(&r, new(big.Rat).SetInt64(size))
	whole := new(big.Int).Quo(r.Num(), r.Denom())
	return whole.Int64(), whole.IsInt64()
}
