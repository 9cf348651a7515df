package telemetry_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
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
