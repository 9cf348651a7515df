//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A bench is one run of everything.
type bench struct {
	options
	works     []work
	servers   []server
	cores     cores
	machine   machine
	began     time.Time
	loadAfter string
	samples   map[string]map[string][]sample // by the keys of work and peer; one for each round
}

// does reports whether the server is asked to do the work.
func (b *bench) does(s server, w work) bool { return w.kind != mallocs || s.key == "levee" }

// overhead is what a run takes beside its measured time and its warm-up: starting
// the server and opening the connections.
const overhead = 400 * time.Millisecond

func (b *bench) estimate() (d time.Duration) {
	for _, w := range b.works {
		for _, s := range b.servers {
			if b.does(s, w) {
				d += overhead
				if w.kind != idle {
					d += b.duration + b.duration/4
				}
			}
		}
	}
	return d * time.Duration(b.options.rounds)
}

// rounds lets the servers take turns.
func (b *bench) rounds(ctx context.Context) error {
	b.samples = map[string]map[string][]sample{}
	for _, w := range b.works {
		b.samples[w.key] = map[string][]sample{}
	}
	for round := range b.options.rounds {
		for _, w := range b.works {
			fmt.Printf("round %d of %d, %s:", round+1, b.options.rounds, w.name)
			for i := range b.servers {
				s := b.servers[(i+round)%len(b.servers)] // nobody is always first
				if !b.does(s, w) {
					continue
				}
				got, err := b.measure(ctx, s, w)
				if err != nil {
					fmt.Println()
					return fmt.Errorf("%s: %s: %w", w.name, s.name, err)
				}
				b.samples[w.key][s.key] = append(b.samples[w.key][s.key], got)
				fmt.Printf("  %s %s", s.name, got.headline())
			}
			fmt.Println()
		}
	}
	return nil
}

// headline is the sample in a word, to see how it goes.
func (s sample) headline() string {
	switch {
	case s.has(allocate):
		return fmt.Sprintf("%.4f", s[allocate])
	case s.has(rate):
		return fmt.Sprintf("%.0f/s", s[rate])
	}
	return fmt.Sprintf("%.2f KiB", s[memory])
}

func (s sample) has(m metric) bool {
	_, ok := s[m]
	return ok
}

// measure runs the server, lets it do the work and stops it.
func (b *bench) measure(ctx context.Context, s server, w work) (got sample, err error) {
	p, err := b.start(ctx, s)
	if err != nil {
		return nil, err
	}
	defer func() {
		p.stop()
		if err != nil {
			err = fmt.Errorf("%w%s", err, p.lastWords())
		}
	}()
	switch w.kind {
	case idle:
		return b.hold(ctx, p, w)
	case mallocs:
		return b.countAllocations(ctx, p, w)
	default:
		return b.burden(ctx, p, w)
	}
}

// A process is a server that runs.
type process struct {
	server
	command *exec.Cmd
	address string
	metrics string // their URL, if it says that it has any
	log     *os.File
}

func (b *bench) start(ctx context.Context, s server) (*process, error) {
	log, err := os.CreateTemp("", "levee-bench-*.log")
	if err != nil {
		return nil, err
	}
	_ = os.Remove(log.Name()) // it lives as long as it is open
	p := &process{server: s, log: log}
	p.command = exec.CommandContext(ctx, "taskset", append([]string{"-c", strconv.Itoa(b.cores.server)}, s.arguments...)...)
	p.command.Env = append(os.Environ(), "GOMAXPROCS=1")
	p.command.Stderr = log
	out, err := p.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.command.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(out)
	for p.address == "" || s.key == "levee" && p.metrics == "" {
		if !lines.Scan() {
			p.stop()
			return nil, errors.New("did not say where it listens" + p.lastWords())
		}
		if where, ok := strings.CutPrefix(lines.Text(), "Listening on "); ok {
			p.address = where
		}
		if where, ok := strings.CutPrefix(lines.Text(), "Metrics on "); ok {
			p.metrics = where
		}
	}
	return p, nil
}

func (p *process) stop() {
	_ = p.command.Process.Kill()
	_ = p.command.Wait()
}

// lastWords is the end of what the server wrote to standard error.
func (p *process) lastWords() string {
	defer p.log.Close()
	words := make([]byte, 2<<10)
	end, err := p.log.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	n, _ := p.log.ReadAt(words, max(0, end-int64(len(words))))
	if n == 0 {
		return ""
	}
	return "\nit wrote:\n" + string(words[:n])
}

// burden puts the server under the work's load.
func (b *bench) burden(ctx context.Context, p *process, w work) (sample, error) {
	l, err := w.load(p.address, b.duration)
	if err != nil {
		return nil, err
	}
	var marks []usage // at the beginning and at the end of measuring
	l.Mark = func() { marks = append(marks, b.usage(p.command.Process.Pid)) }
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

// hold holds idle connections, and then asks levee to drain them.
func (b *bench) hold(ctx context.Context, p *process, w work) (sample, error) {
	l, err := w.load(p.address, b.duration)
	if err != nil {
		return nil, err
	}
	pid := p.command.Process.Pid
	before, err := holdings(pid)
	if err != nil {
		return nil, err
	}
	held, err := l.Hold(ctx)
	if err != nil {
		return nil, err
	}
	defer held.Close()
	time.Sleep(settling)
	after, err := holdings(pid)
	if err != nil {
		return nil, err
	}
	got := sample{
		memory: float64(after.anonymousKiB-before.anonymousKiB) / float64(w.conns),
		files:  float64(after.files-before.files) / float64(w.conns),
	}
	if !strings.HasPrefix(p.name, "levee") { // the others drain nothing: they die of the signal
		return got, nil
	}
	began := time.Now()
	if err := p.command.Process.Signal(syscall.SIGTERM); err != nil {
		return nil, err
	}
	if err := held.Leave(ctx); err != nil {
		return nil, err
	}
	if err := p.command.Wait(); err != nil {
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
			n, err := scrape(ctx, p.metrics, "go_memstats_mallocs_total")
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
func (b *bench) ratio(work, peer, base string, m metric) (v float64, ok bool) {
	var all []float64
	ones, others := b.samples[work][peer], b.samples[work][base]
	for i := range min(len(ones), len(others)) {
		if others[i][m] > 0 && ones[i].has(m) {
			all = append(all, ones[i][m]/others[i][m])
		}
	}
	return median(all), len(all) > 0
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}
