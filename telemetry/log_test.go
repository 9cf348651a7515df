package telemetry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
	"github.com/levee-net/levee/telemetry"
)

var discard = slog.New(slog.DiscardHandler)

// lines collects a log's lines.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// take returns the lines so far, as JSON, and forgets them.
func (l *lines) take(t *testing.T) (all []map[string]any) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range bytes.Lines(l.text.Bytes()) {
		var entry map[string]any
		if err := json.Unmarshal(line, &entry); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		all = append(all, entry)
	}
	l.text.Reset()
	return all
}

func (l *lines) logger(level slog.Level) *slog.Logger {
	return slog.New(slog.NewJSONHandler(l, &slog.HandlerOptions{Level: level}))
}

func TestEveryEndIsOneLineWithItsReason(t *testing.T) {
	tests := []struct {
		text, reason, level string
		in, out             float64
		err                 string
	}{
		{"x123", "client_closed", "DEBUG", 4, 3, ""},
		{"b", "handler_closed", "DEBUG", 1, 0, ""},
		{"e", "handler_error", "WARN", 1, 0, "an error of its own"},
		{"p", "handler_panic", "WARN", 1, 0, "panic: a bug"},
	}
	synctest.Test(t, func(t *testing.T) {
		var log lines
		srv := &levee.Server{Name: "main", Handler: moody, Logger: discard, Trace: telemetry.Log(log.logger(slog.LevelDebug))}
		l := serve(t, srv)
		for _, test := range tests {
			from := netip.MustParseAddrPort("192.0.2.7:1234")
			c, err := l.DialFrom(t.Context(), from)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, test.text)
			c.CloseWrite()
			io.ReadAll(c)
			synctest.Wait()
			c.Close()
			got := log.take(t)
			if len(got) != 1 {
				t.Fatalf("%q: %d lines: %v", test.text, len(got), got)
			}
			line := got[0]
			if line["msg"] != "connection closed" || line["level"] != test.level || line["reason"] != test.reason ||
				line["listener"] != "main" || line["client"] != "192.0.2.7:1234" || line["conn"].(float64) <= 0 ||
				line["in"] != test.in || line["out"] != test.out || line["duration"] == nil {
				t.Errorf("%q: %v", test.text, line)
			}
			if err, _ := line["err"].(string); err != test.err {
				t.Errorf("%q: err is %q, want %q", test.text, err, test.err)
			}
		}
	})
}

func TestOrdinaryEndsAreNotLoggedAtInfo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		srv := &levee.Server{Handler: moody, IdleTimeout: time.Second, Trace: telemetry.Log(log.logger(slog.LevelInfo))}
		l := serve(t, srv)
		io.WriteString(dial(t, l), "b")
		dial(t, l).Reset()
		dial(t, l)              // idle
		time.Sleep(time.Minute) // virtual time
		if got := log.take(t); len(got) != 0 {
			t.Errorf("%v", got)
		}
		if n := srv.Stats().Accepted; n != 3 {
			t.Errorf("%d connections", n)
		}
	})
}

func TestConnectionsCutAtTheDrainDeadlineAreLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		deaf := levee.HandlerFunc(func(ctx context.Context, _ *levee.Conn) error {
			<-ctx.Done()
			return context.Cause(ctx)
		})
		srv := &levee.Server{Handler: deaf, Trace: telemetry.Log(log.logger(slog.LevelInfo))}
		l := serve(t, srv)
		dial(t, l)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		srv.Shutdown(ctx)
		synctest.Wait()
		if got := log.take(t); len(got) != 1 || got[0]["reason"] != "drain_timeout" || got[0]["level"] != "WARN" {
			t.Errorf("%v", got)
		}
	})
}

func TestLogRateIsBoundedAndWhatIsHeldBackIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		srv := &levee.Server{Handler: moody, Logger: discard, Trace: telemetry.Log(log.logger(slog.LevelInfo))}
		l := serve(t, srv)
		burst := func(n int) []map[string]any {
			for range n {
				io.WriteString(dial(t, l), "e")
			}
			// A connection takes a moment to leave.
			time.Sleep(10 * time.Millisecond) // virtual time
			return log.take(t)
		}
		if got := burst(25); len(got) != 10 || got[0]["more_like_it"] != nil {
			t.Errorf("%d lines, the first %v", len(got), got[0])
		}
		if got := burst(5); len(got) != 0 {
			t.Errorf("%d lines in the same second", len(got))
		}
		time.Sleep(time.Second) // virtual time
		got := burst(3)
		held := 0.0
		for _, line := range got {
			n, _ := line["more_like_it"].(float64)
			held += n
		}
		if len(got) != 3 || held != 20 {
			t.Errorf("%v", got)
		}
	})
}

func TestBytesOfAStrangerStayInTheirLine(t *testing.T) {
	hostile := "\n{\"level\":\"ERROR\"}\r\x1b[2J\x00\xff " + strings.Repeat("é", 1000)
	synctest.Test(t, func(t *testing.T) {
		for name, handler := range map[string]func(io.Writer) slog.Handler{
			"json": func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, nil) },
			"text": func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, nil) },
		} {
			for shift := range 2 { // the cut falls into a character in one of them
				var log lines
				srv := &levee.Server{
					Handler: levee.HandlerFunc(func(context.Context, *levee.Conn) error {
						return errors.New(strings.Repeat("x", shift) + hostile)
					}),
					Trace: telemetry.Log(slog.New(handler(&log))),
				}
				dial(t, serve(t, srv))
				// A connection takes a moment to leave.
				time.Sleep(10 * time.Millisecond) // virtual time
				text := log.String()
				if strings.Count(text, "\n") != 1 || strings.ContainsAny(text, "\x1b\x00\r") || !utf8.ValidString(text) || len(text) > 2000 {
					t.Errorf("%s: %q", name, text)
				}
				if strings.Contains(text, "\ufffd…") || !strings.Contains(text, "é…") {
					t.Errorf("%s: the cut goes through a character: %q", name, text)
				}
			}
		}
	})
}

func Example() {
	registry := prometheus.NewRegistry()
	metrics := telemetry.NewMetrics(registry)
	logger := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			switch a.Key {
			case slog.TimeKey, "conn", "client", "duration": // different each time
				return slog.Attr{}
			}
			return a
		},
	}))
	srv := &levee.Server{
		Name: "public",
		Handler: levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
			_, err := io.WriteString(c, "bye")
			return err
		}),
		Trace: levee.Traces(metrics.Trace(), telemetry.Log(logger)),
	}
	metrics.Watch(srv)

	l := leveetest.Listen()
	go srv.Serve(context.Background(), l)
	c, err := l.Dial(context.Background())
	if err != nil {
		logger.Error("dial", "err", err)
		return
	}
	io.ReadAll(c)
	c.Close()
	srv.Shutdown(context.Background())
	// Output: level=DEBUG msg="connection closed" listener=public reason=handler_closed in=0 out=3
}

// after lets so many in, and nobody else.
type after struct{ most int }

func (a *after) Admit(*levee.Conn) (levee.Pass, *levee.Refusal) {
	if a.most--; a.most < 0 {
		return nil, &levee.Refusal{Reason: levee.Denied, Cause: errors.New(strings.Repeat("a ban ", 100))}
	}
	return nil, nil
}

func TestARefusalIsOneLineAtLevelDebug(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo} {
			l := serve(t, &levee.Server{Name: "main", Handler: moody, Gate: &after{}, Trace: telemetry.Log(log.logger(level))})
			client := dial(t, l).LocalAddr().String()
			synctest.Wait()
			entries := log.take(t)
			if level > slog.LevelDebug {
				if len(entries) > 0 {
					t.Errorf("at level %v: %v", level, entries)
				}
				continue
			}
			if len(entries) != 1 {
				t.Fatalf("%d lines, want one: %v", len(entries), entries)
			}
			for key, want := range map[string]any{"msg": "connection refused", "level": "DEBUG", "listener": "main", "client": client, "reason": "denied"} {
				if got := entries[0][key]; got != want {
					t.Errorf("%s is %v, want %v", key, got, want)
				}
			}
			if err, _ := entries[0]["err"].(string); !strings.HasPrefix(err, "a ban a ban") || len(err) > 510 {
				t.Errorf("err is %q", err)
			}
		}
	})
}
