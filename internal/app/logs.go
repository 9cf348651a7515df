package app

import (
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/lmittmann/tint"
	"golang.org/x/term"

	"github.com/levee-net/levee/internal/config"
)

// newLogger returns the logger that the configuration asks for: for people on a
// terminal, JSON elsewhere. In JSON a duration is a number of seconds, as in the
// metrics.
func newLogger(env Env, format config.LogFormat, level slog.Leveler) *slog.Logger {
	out := env.Stderr
	if env.logs != nil {
		out = env.logs
	}
	return slog.New(newLogHandler(out, format, level, env.Terminal))
}

func newLogHandler(out io.Writer, format config.LogFormat, level slog.Leveler, terminal bool) slog.Handler {
	if isForPeople(format, terminal) {
		return tint.NewTextHandler(out, &tint.Options{
			Level:      level,
			TimeFormat: time.TimeOnly,
			NoColor:    !terminal || os.Getenv("NO_COLOR") != "", // https://no-color.org
		})
	}
	return slog.NewJSONHandler(out, &slog.HandlerOptions{Level: level, ReplaceAttr: inSeconds})
}

// isForPeople reports whether a log is text rather than JSON.
func isForPeople(format config.LogFormat, terminal bool) bool {
	return format == config.LogText || format == config.LogAuto && terminal
}

// inSeconds replaces slog's nanoseconds, which look like any other number.
func inSeconds(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.Float64Value(a.Value.Duration().Seconds())
	}
	return a
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }
