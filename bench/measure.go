//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A bench is one run of everything.
type bench struct {
	options
	suites    []*suite
	collector string // of spans; its address
	cores     cores
	machine   machine
	began     time.Time
	loadAfter string
	samples   map[string]map[string][]sample // by the keys of work and peer; one for each round
	failed    map[task]error
}

// A task is a work for a server, by their keys.
type task struct{ work, server string }

// does reports whether the server is asked to do the work. What it could not do once
// it is not asked again.
func (b *bench) does(s server, w work) bool {
	return (w.only == "" || w.only == s.key) && b.failed[task{w.key, s.key}] == nil
}

// audition lets the servers of a suite answer one message each. One that does not
// is left out, with the reason.
func (b *bench) audition(ctx context.Context, s *suite) error {
	var fit []server
	for _, it := range s.servers {
		p, err := b.serve(ctx, s, it, s.works[0])
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			fmt.Printf("%s, %s: left out: %v\n", s.key, it.name, err)
		default:
			p.stop()
			fit = append(fit, it)
		}
	}
	s.servers = fit
	return nil
}

// overhead is what a run takes beside its measured time and its warm-up: starting
// the server and opening the connections.
const overhead = 400 * time.Millisecond

func (b *bench) estimate() (d time.Duration) {
	for _, s := range b.suites {
		for _, w := range s.works {
			for _, it := range s.servers {
				if b.does(it, w) {
					d += overhead
					if w.kind != idle {
						d += b.duration + b.duration/4
					}
				}
			}
		}
	}
	return d * time.Duration(b.options.rounds)
}

// rounds lets the servers take turns.
func (b *bench) rounds(ctx context.Context) error {
	b.samples, b.failed = map[string]map[string][]sample{}, map[task]error{}
	for round := range b.options.rounds {
		for _, s := range b.suites {
			for _, w := range s.works {
				fmt.Printf("round %d of %d, %s:", round+1, b.options.rounds, w.name)
				for i := range s.servers {
					it := s.servers[(i+round)%len(s.servers)] // nobody is always first
					if err := b.perform(ctx, s, it, w); err != nil {
						fmt.Println()
						return err
					}
				}
				fmt.Println()
			}
		}
	}
	return nil
}

// perform lets the server do the work, and keeps what comes of it.
func (b *bench) perform(ctx context.Context, s *suite, it server, w work) error {
	if !b.does(it, w) {
		return nil
	}
	got, err := b.measure(ctx, s, it, w)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		b.failed[task{w.key, it.key}] = err
		fmt.Printf("  %s failed", it.name)
	default:
		b.keep(w, it, got)
		fmt.Printf("  %s %s", it.name, got.headline())
	}
	return nil
}

func (b *bench) keep(w work, it server, got sample) {
	if b.samples[w.key] == nil {
		b.samples[w.key] = map[string][]sample{}
	}
	b.samples[w.key][it.key] = append(b.samples[w.key][it.key], got)
}

// headline is the sample in a word, to see how it goes.
func (s sample) headline() string {
	switch {
	case s.has(allocate):
		return fmt.Sprintf("%.4f", s[allocate])
	case s.has(rate):
		return fmt.Sprintf("%.0f/s", s[rate])
	case s.has(sniff):
		return fmt.Sprintf("%.1f µs", s[sniff])
	}
	return fmt.Sprintf("%.2f KiB", s[memory])
}

// measure runs the server, lets it do the work and stops it.
func (b *bench) measure(ctx context.Context, s *suite, it server, w work) (got sample, err error) {
	p, err := b.serve(ctx, s, it, w)
	if err != nil {
		return nil, err
	}
	defer func() {
		if lastWords := p.stop(); err != nil {
			err = fmt.Errorf("%w%s", err, lastWords)
		}
	}()
	switch w.kind {
	case idle:
		return b.hold(ctx, p, w)
	case mallocs:
		return b.countAllocations(ctx, p, w)
	case sniffing:
		return b.sniffs(ctx)
	default:
		return b.burden(ctx, p, w)
	}
}

// burden puts the server under the work's load.
func (b *bench) burden(ctx context.Context, p *process, w work) (sample, error) {
	l, err := w.load(p.address, b.duration)
	if err != nil {
		return nil, err
	}
	var marks []usage // at the beginning and at the end of measuring
	l.Mark = func() { marks = append(marks, b.usage(p)) }
	result, err := l.Run(ctx)
	if err != nil {
		return nil, err
	}
	used := marks[1].since(marks[0])
	if used.err != nil {
		return nil, used.err
	}
	if result.Messages == 0 {
		return nil, errors.New("no message was answered")
	}
	return sample{
		rate:    result.Rate(),
		cpu:     float64(used.server) / 1e3 / float64(result.Messages),
		p50:     float64(result.Percentile(50)) / 1e3,
		p99:     float64(result.Percentile(99)) / 1e3,
		p999:    float64(result.Percentile(99.9)) / 1e3,
		serving: float64(used.server) / float64(result.Elapsed),
		loading: float64(used.load) / float64(result.Elapsed),
		others:  max(0, float64(used.busy-used.server)/float64(result.Elapsed)),
	}, nil
}

// settling is how long a server with idle connections gets to become quiet before
// its memory is looked at.
const settling = 200 * time.Millisecond

// hold holds idle connections, and then asks the server to drain them, if it does.
func (b *bench) hold(ctx context.Context, p *process, w work) (sample, error) {
	l, err := w.load(p.address, b.duration)
	if err != nil {
		return nil, err
	}
	before, err := holdings(p.pid())
	if err != nil {
		return nil, err
	}
	held, err := l.Hold(ctx)
	if err != nil {
		return nil, err
	}
	defer held.Close()
	time.Sleep(settling)
	after, err := holdings(p.pid())
	if err != nil {
		return nil, err
	}
	got := sample{
		memory: float64(after.anonymousKiB-before.anonymousKiB) / float64(w.conns),
		files:  float64(after.files-before.files) / float64(w.conns),
	}
	if !p.drains {
		return got, nil
	}
	began := time.Now()
	if err := p.running.Process.Signal(syscall.SIGTERM); err != nil {
		return nil, err
	}
	if err := held.Leave(ctx); err != nil {
		return nil, err
	}
	if err := p.running.Wait(); err != nil {
		return nil, fmt.Errorf("drain: %w", err)
	}
	got[drain] = float64(time.Since(began)) / 1e6
	return got, nil
}

// countAllocations looks at the server's own count, which its metrics have.
func (b *bench) countAllocations(ctx context.Context, p *process, w work) (sample, error) {
	l, err := w.load(p.address, b.duration)
	if err != nil {
		return nil, err
	}
	var (
		counts []float64
		failed error
	)
	l.Mark = func() { // blocks the load for a millisecond or two, which disturbs nothing here
		for range 2 { // what lies between two in a row is the asking's own
			n, err := scrape(ctx, p.scrape, "go_memstats_mallocs_total")
			counts, failed = append(counts, n), errors.Join(failed, err)
		}
	}
	result, err := l.Run(ctx)
	if err := errors.Join(err, failed); err != nil {
		return nil, err
	}
	own := counts[3] - counts[2]
	return sample{allocate: max(0, counts[2]-counts[1]-own) / float64(result.Messages)}, nil
}

// scrape reads one of the metrics at the URL.
func scrape(ctx context.Context, url, name string) (float64, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", url, name)
}

// figure returns the median over the rounds; ok is false where nothing was
// measured.
func (b *bench) figure(work, peer string, m metric) (v float64, ok bool) {
	var all []float64
	for _, s := range b.samples[work][peer] {
		if s.has(m) {
			all = append(all, s[m])
		}
	}
	return median(all), len(all) > 0
}

// ratio returns the median over the rounds of the ratios within a round: what
// disturbs a round disturbs both.
func (b *bench) ratio(work, peer string, to unit, m metric) (v float64, ok bool) {
	var all []float64
	for round, s := range b.samples[work][peer] {
		if base := b.best(work, to, m, round); base > 0 && s.has(m) {
			all = append(all, s[m]/base)
		}
	}
	return median(all), len(all) > 0
}

// best returns the best figure within a round of those that the unit names; 0 where
// nothing was measured.
func (b *bench) best(work string, of unit, m metric, round int) (v float64) {
	for peer := range strings.SplitSeq(of.of, ",") {
		s := b.samples[work][peer]
		if round >= len(s) || !s[round].has(m) {
			continue
		}
		if figure := s[round][m]; v == 0 || (figure > v) == m.moreIsBetter() {
			v = figure
		}
	}
	return v
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}
