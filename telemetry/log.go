package telemetry

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/levee-net/levee"
)

// Log returns hooks that log one line for every connection that ends, with the
// word that metrics have for it too.
//
// The ordinary end of a connection is logged at level debug. Ends that are this
// side's doing (handler_error, handler_panic, drain_timeout, upstream_unavailable)
// are logged at warn, at most ten a second; the first line after a gap says how many
// were held back in it. Those who are turned away at the door are logged at debug. What
// strangers sent stands in a line only quoted and cut
// short, as an attribute.
func Log(logger *slog.Logger) *levee.Trace {
	warnings := &gate{}
	return &levee.Trace{
		Closed: func(c *levee.Conn, end levee.End) {
			level := levelOf(end.Reason)
			if !logger.Enabled(context.Background(), level) {
				return
			}
			held := 0
			if level >= slog.LevelWarn {
				var pass bool
				if held, pass = warnings.pass(time.Now()); !pass {
					return
				}
			}
			logger.LogAttrs(context.Background(), level, "connection closed", attributes(c, end, held)...)
		},
		Refused: func(c *levee.Conn, r *levee.Refusal) {
			if logger.Enabled(context.Background(), slog.LevelDebug) {
				logger.LogAttrs(context.Background(), slog.LevelDebug, "connection refused", refusal(c, r)...)
			}
		},
	}
}

func levelOf(reason levee.CloseReason) slog.Level {
	switch reason {
	case levee.HandlerError, levee.HandlerPanic, levee.DrainTimeout, levee.UpstreamUnavailable:
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

func attributes(c *levee.Conn, end levee.End, held int) []slog.Attr {
	attrs := []slog.Attr{
		slog.Uint64("conn", c.ID()),
		slog.String("listener", c.Server().Name),
		slog.String("client", c.RemoteAddr().String()),
		slog.String("reason", end.Reason.String()),
		slog.Duration("duration", end.Duration),
		slog.Int64("in", end.Read),
		slog.Int64("out", end.Written),
	}
	if end.Err != nil {
		attrs = append(attrs, slog.String("err", cut(end.Err.Error())))
	}
	if held > 0 {
		attrs = append(attrs, slog.Int("more_like_it", held))
	}
	return attrs
}

func refusal(c *levee.Conn, r *levee.Refusal) []slog.Attr {
	attrs := []slog.Attr{
		slog.String("listener", c.Server().Name),
		slog.String("client", c.RemoteAddr().String()),
		slog.String("reason", c.Reason().String()),
	}
	if r.Cause != nil {
		attrs = append(attrs, slog.String("err", cut(r.Cause.Error())))
	}
	return attrs
}

// longest is how much of an error's text a log line shows: it may quote what a
// stranger sent.
const longest = 500

// printable replaces what could break a line, or control a terminal.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) {
			return c
		}
		return '?'
	}, s)
}

func cut(s string) string {
	if len(s) <= longest {
		return s
	}
	return strings.ToValidUTF8(s[:longest], "") + "…" // the cut may go through a character
}

// gate lets ten pass in a second and counts the rest.
type gate struct {
	mu     sync.Mutex
	second time.Time
	passed int
	held   int
}

const perSecond = 10

func (g *gate) pass(now time.Time) (held int, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now.Sub(g.second) >= time.Second {
		g.second, g.passed = now, 0
	}
	if g.passed == perSecond {
		g.held++
		return 0, false
	}
	g.passed++
	held, g.held = g.held, 0
	return held, true
}
