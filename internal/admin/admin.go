// Package admin serves operators: metrics, health, profiles, limits and bans, over HTTP
// on an address that only this machine can reach.
//
// It goes on answering whatever happens to the rest: it has few connections, the quiet
// ones of which make room for others, and takes the next file that there is.
//
// Its secret is what a browser on the same machine could be tricked into. A page
// of a stranger's may send requests to loopback, or have its own name resolve to
// it (DNS rebinding), so a request must name a host that nobody else can own.
package admin

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A Server answers operators. Its zero value is not ready.
type Server struct {
	// Metrics is what /metrics shows.
	Metrics prometheus.Gatherer
	// Log gets what goes wrong. It must not be nil.
	Log *slog.Logger
	// API is what else there is.
	API API

	ready  atomic.Bool
	http   http.Server
	budget budget

	streams streams
	closed  sync.Once
}

// SetReady says whether /readyz answers 200 or 503. It may be called at any time.
func (s *Server) SetReady(ready bool) { s.ready.Store(ready) }

// Ready reports what SetReady has said last.
func (s *Server) Ready() bool { return s.ready.Load() }

// Serve answers requests on l until Close. It returns nil then, and why if it
// had to stop earlier.
func (s *Server) Serve(l net.Listener) error {
	s.http.Handler = onlyForOperators(s.routes())
	s.http.ReadHeaderTimeout = 5 * time.Second
	s.http.ReadTimeout = 10 * time.Second
	s.http.WriteTimeout = 2 * time.Minute // a CPU profile takes 30 seconds unless told otherwise
	s.http.IdleTimeout = time.Minute
	s.http.MaxHeaderBytes = 16 << 10
	s.http.ErrorLog = slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug)
	socket := &patient{Listener: l}
	socket.save()
	s.http.ConnState = func(c net.Conn, state http.ConnState) {
		if drop := s.budget.note(c, state); drop != nil {
			_ = drop.Close()
		}
		if state == http.StateClosed {
			socket.save()
		}
	}
	if err := s.http.Serve(socket); err != nil && err != http.ErrServerClosed {
		return fmt.Errorf("admin: %w", err)
	}
	return nil
}

// Close stops the server; requests that are being answered get a moment.
func (s *Server) Close() error {
	s.closed.Do(func() { close(s.streams.closing()) })
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		return s.http.Close()
	}
	return nil
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", s.scrapes())
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if s.ready.Load() {
			answer(w, http.StatusOK, "ok")
		} else {
			answer(w, http.StatusServiceUnavailable, "not ready")
		}
	})
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	s.API.routes(mux, &s.streams)
	return mux
}

func answer(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	fmt.Fprintln(w, text)
}

// onlyForOperators refuses requests whose Host is a name that somebody else could
// point at this machine, and those that another site's page makes by itself. A
// link from there may be followed.
func onlyForOperators(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !localHost(r.Host):
			answer(w, http.StatusForbidden, "use an address or localhost: the name in the request is not this server's")
		case foreign(r.Header), changes(r) && fromElsewhere(r):
			answer(w, http.StatusForbidden, "not for pages of other sites")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// foreign goes by Fetch Metadata (https://www.w3.org/TR/fetch-metadata/), which
// browsers send and pages cannot forge; programs send nothing of the kind.
func foreign(h http.Header) bool {
	switch h.Get("Sec-Fetch-Site") {
	case "", "none", "same-origin":
		return false
	}
	return h.Get("Sec-Fetch-Mode") != "navigate" || h.Get("Sec-Fetch-Dest") != "document"
}

// localHost reports whether a Host header names an IP address, localhost, or
// nothing at all, as clients of a Unix socket may.
func localHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if host == "" || strings.EqualFold(host, "localhost") {
		return true
	}
	_, err := netip.ParseAddr(host)
	return err == nil
}
