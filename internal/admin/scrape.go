package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// scrapes answers scrapes: in OpenMetrics, which has exemplars, to those who ask for it.
func (s *Server) scrapes() http.Handler {
	return promhttp.HandlerFor(s.Metrics, promhttp.HandlerOpts{
		ErrorLog:            scrapeLog{s.Log},
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: 4,
		Timeout:             10 * time.Second,
		EnableOpenMetrics:   true,
	})
}

// A scrapeLog gets what promhttp complains of.
type scrapeLog struct{ log *slog.Logger }

// Println logs an error. That a scraper has gone before it was told all is not one of this side.
func (l scrapeLog) Println(v ...any) {
	level := slog.LevelError
	for _, each := range v {
		if err, ok := each.(error); ok && hasGone(err) {
			level = slog.LevelDebug
		}
	}
	l.log.Log(context.Background(), level, strings.TrimSuffix(fmt.Sprintln(v...), "\n"))
}

// hasGone reports whether err is the client's doing: it has closed its connection, or let it be.
func hasGone(err error) bool {
	for _, gone := range []error{context.Canceled, http.ErrHandlerTimeout, net.ErrClosed, syscall.EPIPE, syscall.ECONNRESET} {
		if errors.Is(err, gone) {
			return true
		}
	}
	return false
}
