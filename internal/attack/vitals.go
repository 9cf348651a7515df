package attack

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Vitals are what a server has and has spent.
type Vitals struct {
	CPU         time.Duration // since it began
	Memory      int64         // bytes resident
	Files       int           // open
	Connections int           // open; -1 is not known
	Goroutines  int           // -1 is not known, or it has none
}

// A Meter measures a server.
type Meter func(context.Context) (Vitals, error)

// Spent is what an attack has cost a server.
type Spent struct {
	Known  bool
	CPU    time.Duration
	Memory int64 // bytes more than before, after it; may be negative
}

func (v Vitals) since(base Vitals) Spent {
	return Spent{Known: true, CPU: v.CPU - base.CPU, Memory: v.Memory - base.Memory}
}

// What may be more than before, because the well-behaved client's last connection is
// on its way out, and because servers keep some of what they will need again.
const (
	spareConnections = 4
	spareGoroutines  = 32
	spareFiles       = 64
)

// above says what there is more of than before.
func (v Vitals) above(base Vitals) string {
	var more []string
	for _, count := range []struct {
		what              string
		now, before, more int
	}{
		{"connections", v.Connections, base.Connections, spareConnections},
		{"goroutines", v.Goroutines, base.Goroutines, spareGoroutines},
		{"open files", v.Files, base.Files, spareFiles},
	} {
		if count.before >= 0 && count.now > count.before+count.more {
			more = append(more, fmt.Sprintf("%d %s instead of %d", count.now, count.what, count.before))
		}
	}
	return strings.Join(more, ", ")
}

// maxMetrics bounds what is read of a server's metrics.
const maxMetrics = 8 << 20

// FromMetrics measures by what a levee tells at /metrics of its admin address, and anything else that tells some of it.
// ask makes the request, and admin is what an error calls whom it has asked.
func FromMetrics(admin string, ask func(context.Context) (*http.Response, error)) Meter {
	return func(ctx context.Context) (Vitals, error) {
		answer, err := ask(ctx)
		if err != nil {
			return Vitals{}, err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return Vitals{}, fmt.Errorf("metrics at %s: %s", admin, answer.Status)
		}
		return readMetrics(io.LimitReader(answer.Body, maxMetrics))
	}
}

// readMetrics reads Prometheus' text format. Of a metric that is there for several
// sets of labels it takes the sum.
func readMetrics(r io.Reader) (Vitals, error) {
	sums := map[string]float64{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if name, value, ok := sample(lines.Text()); ok {
			sums[name] += value
		}
	}
	count := func(name string) int {
		if n, ok := sums[name]; ok {
			return int(n)
		}
		return -1
	}
	return Vitals{
		CPU:         time.Duration(sums["process_cpu_seconds_total"] * float64(time.Second)),
		Memory:      int64(sums["process_resident_memory_bytes"]),
		Files:       count("process_open_fds"),
		Connections: count("levee_connections_active"),
		Goroutines:  count("go_goroutines"),
	}, lines.Err()
}

// sample reads one line: a name, labels in braces or none, a value, a time or none.
func sample(line string) (name string, value float64, ok bool) {
	if strings.HasPrefix(line, "#") {
		return "", 0, false
	}
	name, rest, _ := strings.Cut(line, " ")
	if brace := strings.IndexByte(line, '{'); brace >= 0 && brace < len(name) {
		name = line[:brace]
		rest = line[strings.LastIndexByte(line, '}')+1:]
	}
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return "", 0, false
	}
	value, err := strconv.ParseFloat(fields[0], 64)
	return name, value, err == nil
}
