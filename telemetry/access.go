package telemetry

import (
	"cmp"
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/levee-net/levee"
)

// An AccessLog is one line for every connection that has ended: who it was, where it went,
// how long what took, and why it ended. Its fields must not be changed once it is in use.
type AccessLog struct {
	// Logger gets the lines, at level info. One that writes to a [Writer] holds up nobody.
	Logger *slog.Logger

	// PerSecond is how many lines there may be in a second. Beyond that only ends that are
	// [Abnormal] are logged, as many again; the first line of the next second says in left_out how many
	// were not. Zero means 10; negative means all.
	PerSecond int

	// TraceID returns the id of a connection's trace, or "". It may be nil.
	TraceID func(c *levee.Conn) string

	usual, abnormal atomic.Int64 // see spend
	leftOut         atomic.Int64 // since the last line
	leftOutSoFar    atomic.Int64
}

// LeftOut returns how many ends were not logged, as there were too many.
func (l *AccessLog) LeftOut() int64 { return l.leftOutSoFar.Load() }

// Trace returns the hooks that log.
func (l *AccessLog) Trace() *levee.Trace { return &levee.Trace{Closed: l.closed} }

func (l *AccessLog) closed(c *levee.Conn, end levee.End) {
	if !l.has(end.Reason) {
		l.leftOut.Add(1)
		l.leftOutSoFar.Add(1)
		return
	}
	l.Logger.LogAttrs(context.Background(), slog.LevelInfo, "connection", l.line(c, end)...)
}

// has reports whether there is room for one more line.
func (l *AccessLog) has(reason levee.CloseReason) bool {
	most := int64(cmp.Or(l.PerSecond, 10))
	if most < 0 {
		return true
	}
	now := time.Now()
	return spend(&l.usual, now, most) || Abnormal(reason) && spend(&l.abnormal, now, most)
}

// AccessFields are the fields of a line that is in an AccessLog, beside time, level and msg. Those after
// "out" are left out where there is nothing to say.
func AccessFields() []string {
	return []string{
		"conn", "listener", "client", "local", "reason", "duration", "in", "out",
		"peer", "route", "upstream", "server", "tries", "engine", "tls", "sni", "alpn", "err",
		"phases", "rtt", "retransmits", "trace_id", "left_out",
	}
}

func (l *AccessLog) line(c *levee.Conn, end levee.End) []slog.Attr {
	story := c.Story()
	client, peer := c.RemoteAddr().String(), c.PeerAddr().String()
	attrs := make([]slog.Attr, 0, 24)
	attrs = append(attrs,
		slog.Uint64("conn", c.ID()), slog.String("listener", c.Server().Name),
		slog.String("client", client), slog.String("local", c.LocalAddr().String()),
		slog.String("reason", end.Reason.String()), slog.Duration("duration", end.Duration),
		slog.Int64("in", end.Read), slog.Int64("out", end.Written),
	)
	text := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, printable(cut(value))))
		}
	}
	if peer != client {
		text("peer", peer)
	}
	text("route", story.Route)
	text("upstream", story.Upstream)
	text("server", story.Server)
	if story.Tries > 1 {
		attrs = append(attrs, slog.Int("tries", story.Tries))
	}
	text("engine", story.Engine)
	text("tls", story.TLSName())
	text("sni", story.ServerName)
	text("alpn", story.ALPN)
	if end.Err != nil {
		text("err", end.Err.Error())
	}
	attrs = append(attrs, phases(&story, end.Duration))
	if end.TCP != nil {
		attrs = append(attrs, slog.Duration("rtt", end.TCP.RTT), slog.Int64("retransmits", int64(end.TCP.Retransmits)))
	}
	if l.TraceID != nil {
		text("trace_id", l.TraceID(c))
	}
	if n := l.leftOut.Swap(0); n > 0 {
		attrs = append(attrs, slog.Int64("left_out", n))
	}
	return attrs
}

// phases is a group with the time that each phase took.
func phases(story *levee.Story, end time.Duration) slog.Attr {
	var room [8]levee.Span
	spans := story.Spans(room[:0], end)
	took := make([]slog.Attr, len(spans))
	for i, s := range spans {
		took[i] = slog.Duration(s.Phase.String(), s.Took)
	}
	return slog.Attr{Key: "phases", Value: slog.GroupValue(took...)}
}
