package telemetry_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/telemetry"
)

func TestAnAccessLogsLineTellsTheStory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out lines
		log := &telemetry.AccessLog{Logger: out.logger(slog.LevelInfo), TraceID: func(*levee.Conn) string { return "4bf9" }}
		h := levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
			c.SetRoute("db")
			c.SetTarget(&levee.Target{Upstream: "postgres", Server: "db-1"}, 2)
			time.Sleep(2 * time.Second) // virtual time
			io.WriteString(c, "hello")
			return errors.New("line\nbreak " + strings.Repeat("é", 1000))
		})
		l := serve(t, &levee.Server{Name: "main", Handler: h, Trace: log.Trace()})
		client := dial(t, l)
		io.ReadAll(client)
		client.Close()
		time.Sleep(time.Second) // virtual time
		entries := out.take(t)
		if len(entries) != 1 {
			t.Fatalf("%d lines", len(entries))
		}
		line := entries[0]
		for key, want := range map[string]any{
			"msg": "connection", "level": "INFO", "listener": "main", "client": client.LocalAddr().String(), "reason": "handler_error",
			"in": 0.0, "out": 5.0, "route": "db", "upstream": "postgres", "server": "db-1", "tries": 2.0, "engine": "goroutine", "trace_id": "4bf9",
			"local": client.RemoteAddr().String(),
		} {
			if got := line[key]; got != want {
				t.Errorf("%s is %v, want %v", key, got, want)
			}
		}
		if err, _ := line["err"].(string); !strings.HasPrefix(err, "line?break é") || len(err) > 510 {
			t.Errorf("err is %q", err)
		}
		phases, _ := line["phases"].(map[string]any)
		if first, _ := phases["first_byte"].(float64); len(phases) < 2 || time.Duration(first).Round(time.Second) != 2*time.Second { // as slog has it, in nanoseconds
			t.Errorf("phases are %v", phases)
		}
		for key := range line {
			if !slices.Contains(append(telemetry.AccessFields(), "time", "level", "msg"), key) {
				t.Errorf("%s is not among the fields that are promised", key)
			}
		}
	})
}

// inSeconds is the ReplaceAttr that AccessLog.JSON stands in for.
func inSeconds(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.Float64Value(a.Value.Duration().Seconds())
	}
	return a
}

func TestAnAccessLogsJSONIsByteByByteWhatSlogWrites(t *testing.T) {
	errs := []string{"", "plain", "line\nbreak", `"},"level":"ERROR"`, "\x00\x1b[2J\xff\u2028\u202e é", strings.Repeat("é\x00", 500), strings.Repeat("a", 65536)}
	synctest.Test(t, func(t *testing.T) {
		var slogs, ours lines
		writer := telemetry.NewWriter(&ours, 0)
		traceID := func(*levee.Conn) string { return "4bf9" }
		logs := levee.Traces(
			(&telemetry.AccessLog{Logger: slog.New(slog.NewJSONHandler(&slogs, &slog.HandlerOptions{ReplaceAttr: inSeconds})), PerSecond: 3, TraceID: traceID}).Trace(),
			(&telemetry.AccessLog{JSON: writer, PerSecond: 3, TraceID: traceID}).Trace())
		i := 0
		h := levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
			c.SetRoute("db\x00" + errs[i])
			c.SetTarget(&levee.Target{Upstream: errs[i], Server: "db-1"}, i)
			time.Sleep(time.Duration(i*i) * 123456789) // virtual time
			io.WriteString(c, "hello")
			if errs[i] == "" {
				return nil
			}
			return errors.New(errs[i])
		})
		l := serve(t, &levee.Server{Name: "main\"\n", Handler: h, Logger: discard, Trace: logs})
		for i = range errs {
			for range 5 { // of which some are left out
				client := dial(t, l)
				io.ReadAll(client)
				client.Close()
				synctest.Wait()
			}
		}
		writer.Flush(time.Minute)
		got, want := strings.SplitAfter(ours.String(), "\n"), strings.SplitAfter(slogs.String(), "\n")
		for i := range min(len(got), len(want)) {
			if got[i] != want[i] {
				t.Errorf("%.2000s\nand slog has\n%.2000s", got[i], want[i])
			}
		}
		if len(got) != len(want) || len(got) < 20 || strings.Count(ours.String(), `"left_out":`) < 2 {
			t.Errorf("%d lines, and slog has %d", len(got), len(want))
		}
	})
}

func TestASampledAccessLogSaysHowManyItHasLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out lines
		log := &telemetry.AccessLog{Logger: out.logger(slog.LevelInfo), PerSecond: 5}
		l := serve(t, &levee.Server{Handler: moody, Logger: discard, Trace: log.Trace()})
		for range 100 {
			io.WriteString(dial(t, l), "b")
		}
		time.Sleep(10 * time.Millisecond) // virtual time
		for range 30 {
			io.WriteString(dial(t, l), "e") // what is not usual has a share of its own
		}
		time.Sleep(2 * time.Second) // virtual time
		io.WriteString(dial(t, l), "b")
		time.Sleep(time.Second) // virtual time
		var usual, others int
		var leftOut float64
		for _, line := range out.take(t) {
			if line["reason"] == "handler_closed" {
				usual++
			} else {
				others++
			}
			n, _ := line["left_out"].(float64)
			leftOut += n
		}
		if usual != 6 || others != 5 || leftOut != 120 || log.LeftOut() != 120 {
			t.Errorf("%d usual lines, %d others, %v left out, %d counted", usual, others, leftOut, log.LeftOut())
		}
	})
}

func TestAnAccessLogOfAllLeavesNothingOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out lines
		log := &telemetry.AccessLog{Logger: out.logger(slog.LevelInfo), PerSecond: -1}
		l := serve(t, &levee.Server{Handler: moody, Trace: log.Trace()})
		for range 200 {
			io.WriteString(dial(t, l), "b")
		}
		time.Sleep(time.Second) // virtual time
		if got := out.take(t); len(got) != 200 || log.LeftOut() != 0 {
			t.Errorf("%d lines, %d left out", len(got), log.LeftOut())
		}
	})
}

func TestALineOfAnAccessLogsJSONTakesNoMemory(t *testing.T) {
	writer := telemetry.NewWriter(io.Discard, 0)
	closed := (&telemetry.AccessLog{JSON: writer, PerSecond: -1}).Trace().Closed
	c, end := ended(t), levee.End{Reason: levee.ClientClosed, Duration: 70 * time.Microsecond}
	if n := testing.AllocsPerRun(1000, func() { closed(c, end) }); n > 2 { // 0 but for the race detector, which has pools forget
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAccessLog(b *testing.B) {
	devNull, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer devNull.Close()
	writer := telemetry.NewWriter(devNull, 0)
	bySlog := slog.New(slog.NewJSONHandler(writer, &slog.HandlerOptions{ReplaceAttr: inSeconds}))
	c, end := ended(b), levee.End{Reason: levee.ClientClosed, Duration: 70 * time.Microsecond, Read: 64, Written: 64}
	for _, log := range []struct {
		name string
		log  *telemetry.AccessLog
	}{{"slog", &telemetry.AccessLog{Logger: bySlog, PerSecond: -1}}, {"JSON", &telemetry.AccessLog{JSON: writer, PerSecond: -1}}} {
		b.Run(log.name, func(b *testing.B) {
			b.ReportAllocs()
			closed := log.log.Trace().Closed
			for b.Loop() {
				closed(c, end)
			}
		})
	}
}
