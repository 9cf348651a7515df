package telemetry

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levee-net/levee"
)

// An AccessLog is one line for every connection that has ended: who it was, where it went,
// how long what took, and why it ended. Its fields must not be changed once it is in use.
type AccessLog struct {
	// Logger gets the lines, at level info. One that writes to a [Writer] holds up nobody.
	Logger *slog.Logger

	// JSON, if it is not nil, gets them instead: byte by byte what a Logger of a slog.JSONHandler would
	// write whose ReplaceAttr makes durations numbers of seconds, at an eighth of the cost.
	JSON *Writer

	// PerSecond is how many lines there may be in a second. Beyond that only ends that are
	// abnormal ([levee.CloseReason.IsAbnormal]) are logged, as many again; the first line of the next second says in left_out how many
	// were not. Zero means 10; negative means all.
	PerSecond int

	// TraceID returns the id of a connection's trace, or "". It may be nil.
	TraceID func(c *levee.Conn) string

	usual, abnormal atomic.Int64 // see spend
	leftOut         atomic.Int64 // since the last line
	leftOutSoFar    atomic.Int64

	sheets sync.Pool // of *jsonLine
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
	if l.JSON != nil {
		l.writeJSON(c, &end)
		return
	}
	line := attrLine{make([]slog.Attr, 0, 24)}
	l.fill(&line, c, &end)
	l.Logger.LogAttrs(context.Background(), slog.LevelInfo, "connection", line.attrs...)
}

func (l *AccessLog) writeJSON(c *levee.Conn, end *levee.End) {
	line, ok := l.sheets.Get().(*jsonLine)
	if !ok {
		line = new(jsonLine)
	}
	defer l.sheets.Put(line)
	line.begin(time.Now(), "connection")
	l.fill(line, c, end)
	_, _ = l.JSON.Write(line.end())
}

// has reports whether there is room for one more line.
func (l *AccessLog) has(reason levee.CloseReason) bool {
	most := int64(cmp.Or(l.PerSecond, 10))
	if most < 0 {
		return true
	}
	now := time.Now()
	return spend(&l.usual, now, most) || reason.IsAbnormal() && spend(&l.abnormal, now, most)
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

// A sheet is what the fields of a line are written on, in one form or another.
type sheet interface {
	// word is for what levee or its operator has chosen, and text for what may be a stranger's: it is cut, and
	// what could break a line or control a terminal is replaced.
	word(key, value string)
	text(key, value string)
	count(key string, n int64)
	address(key string, a net.Addr)
	took(key string, d time.Duration)
	// phases are how long each phase took, if there is one. The moments come as a copy: what goes through an interface
	// by reference is allocated.
	phases(key string, m levee.Moments, end time.Duration)
}

func (l *AccessLog) fill(line sheet, c *levee.Conn, end *levee.End) {
	story := c.Story()
	client, peer := c.RemoteAddr(), c.PeerAddr()
	line.count("conn", int64(c.ID())) //nolint:gosec // it counts from 1
	line.word("listener", c.Server().Name)
	line.address("client", client)
	line.address("local", c.LocalAddr())
	line.word("reason", end.Reason.String())
	line.took("duration", end.Duration)
	line.count("in", end.Read)
	line.count("out", end.Written)
	if !sameAddress(client, peer) {
		line.address("peer", peer)
	}
	said := func(key, value string) {
		if value != "" {
			line.text(key, value)
		}
	}
	said("route", story.Route)
	said("upstream", story.Upstream)
	said("server", story.Server)
	if story.Tries > 1 {
		line.count("tries", int64(story.Tries))
	}
	said("engine", story.Engine)
	said("tls", story.TLSName())
	said("sni", story.ServerName)
	said("alpn", story.ALPN)
	if end.Err != nil {
		said("err", end.Err.Error())
	}
	line.phases("phases", story.Moments, end.Duration)
	if end.TCP != nil {
		line.took("rtt", end.TCP.RTT)
		line.count("retransmits", int64(end.TCP.Retransmits))
	}
	if l.TraceID != nil {
		said("trace_id", l.TraceID(c))
	}
	if n := l.leftOut.Swap(0); n > 0 {
		line.count("left_out", n)
	}
}

// sameAddress compares addresses by what they look like, as that is what is logged.
func sameAddress(a, b net.Addr) bool {
	one, ok := a.(*net.TCPAddr)
	other, too := b.(*net.TCPAddr)
	return ok && too && one == other || a.String() == b.String()
}

// An attrLine is a line for a slog.Logger.
type attrLine struct{ attrs []slog.Attr }

func (l *attrLine) add(a slog.Attr)                  { l.attrs = append(l.attrs, a) }
func (l *attrLine) word(key, value string)           { l.add(slog.String(key, value)) }
func (l *attrLine) text(key, value string)           { l.add(slog.String(key, printable(cut(value)))) }
func (l *attrLine) count(key string, n int64)        { l.add(slog.Int64(key, n)) }
func (l *attrLine) address(key string, a net.Addr)   { l.add(slog.String(key, a.String())) }
func (l *attrLine) took(key string, d time.Duration) { l.add(slog.Duration(key, d)) }

// phases adds a group, which slog leaves out if it is empty.
func (l *attrLine) phases(key string, m levee.Moments, end time.Duration) {
	spans := m.Spans(make([]levee.Span, 0, mostSpans), end)
	took := make([]slog.Attr, len(spans))
	for i, s := range spans {
		took[i] = slog.Duration(s.Phase.String(), s.Took)
	}
	l.add(slog.Attr{Key: key, Value: slog.GroupValue(took...)})
}

const mostSpans = 8 // see levee.Moments.Spans
