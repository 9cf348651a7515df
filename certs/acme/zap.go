package acme

import (
	"context"
	"log/slog"

	"go.uber.org/zap/zapcore"
)

// bridge is where certmagic's log goes: zap's core, and slog behind it.
type bridge struct{ to *slog.Logger }

func level(l zapcore.Level) slog.Level {
	switch {
	case l <= zapcore.DebugLevel:
		return slog.LevelDebug
	case l == zapcore.InfoLevel:
		return slog.LevelInfo
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	}
	return slog.LevelError
}

func (b bridge) Enabled(l zapcore.Level) bool {
	return b.to.Enabled(context.Background(), level(l))
}

func (b bridge) With(fields []zapcore.Field) zapcore.Core {
	return bridge{slog.New(b.to.Handler().WithAttrs(attrs(fields)))}
}

func (b bridge) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if b.Enabled(e.Level) {
		return checked.AddCore(e, b)
	}
	return checked
}

func (b bridge) Write(e zapcore.Entry, fields []zapcore.Field) error {
	record := slog.NewRecord(e.Time, level(e.Level), e.Message, 0)
	if e.LoggerName != "" {
		record.AddAttrs(slog.String("logger", e.LoggerName))
	}
	record.AddAttrs(attrs(fields)...)
	return b.to.Handler().Handle(context.Background(), record)
}

func (b bridge) Sync() error { return nil }

// attrs has each field say its value as it would to zap's own encoders.
func attrs(fields []zapcore.Field) []slog.Attr {
	attrs := make([]slog.Attr, 0, len(fields))
	for _, f := range fields {
		said := zapcore.NewMapObjectEncoder()
		f.AddTo(said)
		if value, ok := said.Fields[f.Key]; ok {
			attrs = append(attrs, slog.Any(f.Key, value))
		}
	}
	return attrs
}
