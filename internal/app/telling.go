package app

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/telemetry"
)

// A telling is what a front tells of its connections beside metrics and its own log: the
// access log, and the flight recorder.
type telling struct {
	record record
	access *telemetry.AccessLog // nil if it is off
	out    *telemetry.Writer    // of the access log
	file   *telemetry.File      // nil if it goes to standard output
}

// flushTime is how long the end waits for logs that cannot be written.
const flushTime = 2 * time.Second

// tell opens what there is to write to, unless this is a check.
func (f *front) tell(logs *config.Logs) (*telling, error) {
	t := &telling{record: newRecord()}
	t.record.TraceID = f.tracing.TraceID
	f.registry.MustRegister(&logMetrics{f.env.logs, t})
	if logs.Access == config.AccessOff || f.env.lookOnly {
		return t, nil
	}
	to := f.env.Stdout
	if logs.AccessFile != "" {
		file, err := telemetry.OpenFile(logs.AccessFile)
		if err != nil {
			return nil, fmt.Errorf("telemetry.logs.access_file: %w", err)
		}
		t.file, to = file, file
	}
	t.out = telemetry.NewWriter(to, accessRoom)
	onTerminal := f.env.Terminal && t.file == nil
	t.access = &telemetry.AccessLog{TraceID: f.tracing.TraceID}
	if isForPeople(logs.Format, onTerminal) {
		t.access.Logger = slog.New(newLogHandler(t.out, logs.Format, slog.LevelInfo, onTerminal))
	} else {
		t.access.JSON = t.out // the same lines as the handler's
	}
	if logs.Access == config.AccessAll {
		t.access.PerSecond = -1
	}
	return t, nil
}

// accessRoom is how many bytes of lines may wait to be written: some 8,000 lines.
const accessRoom = 4 << 20

func (t *telling) trace() *levee.Trace {
	trace := t.record.Trace()
	if t.access != nil {
		trace = levee.Traces(trace, t.access.Trace())
	}
	return trace
}

// Reopen opens the access log's file anew, if it has one.
func (t *telling) Reopen() error {
	if t.out == nil {
		return nil
	}
	return t.out.Reopen()
}

// close writes what is left.
func (t *telling) close() {
	if t.out != nil {
		t.out.Flush(flushTime)
	}
	if t.file != nil {
		_ = t.file.Close()
	}
}

// logMetrics tells at each scrape what logs have left out.
type logMetrics struct {
	logs    *telemetry.Writer
	telling *telling
}

var (
	logDroppedDesc = prometheus.NewDesc("levee_log_dropped_total",
		"Lines that were dropped as they could not be written: nobody reads the log, or the disk is full.", []string{"log"}, nil)
	accessLeftOutDesc = prometheus.NewDesc("levee_access_log_left_out_total",
		"Connections that the access log has no line of, as it is sampled and there were too many.", nil, nil)
)

// Describe implements prometheus.Collector.
func (m *logMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- logDroppedDesc
	ch <- accessLeftOutDesc
}

// Collect implements prometheus.Collector.
func (m *logMetrics) Collect(ch chan<- prometheus.Metric) {
	dropped := func(w *telemetry.Writer) float64 {
		if w == nil {
			return 0
		}
		return float64(w.Dropped())
	}
	leftOut := int64(0)
	if m.telling.access != nil {
		leftOut = m.telling.access.LeftOut()
	}
	ch <- prometheus.MustNewConstMetric(logDroppedDesc, prometheus.CounterValue, dropped(m.logs), "main")
	ch <- prometheus.MustNewConstMetric(logDroppedDesc, prometheus.CounterValue, dropped(m.telling.out), "access")
	ch <- prometheus.MustNewConstMetric(accessLeftOutDesc, prometheus.CounterValue, float64(leftOut))
}
