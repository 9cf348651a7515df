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
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/levee-net/levee/internal/admin/dashboard"
)

// A Server answers operators. Its zero value is not ready.
type Server struct {
	// Metrics is what /metrics shows.
	Metrics prometheus.Gatherer
	// Log gets what goes wrong. It must not be nil.
	Log *slog.Logger
	// API is what else there is.
	API API

	// Token, if it is not nil, is asked of whoever wants more than /livez and /readyz.
	Token *Token
	// TLS, if it is not nil, is what Serve speaks.
	TLS *tls.Config
	// Client, if it is not nil, says why a client that has shown a certificate is not to be let in; who has shown none is
	// not. It needs TLS, which asks for certificates, and does not depend on them. The handshake has verified them.
	Client func(*tls.ConnectionState) error
	// Hosts are names that are this server's, besides localhost and any address.
	Hosts []string

	ready  atomic.Bool
	http   http.Server
	budget budget

	streams  streams
	closed   sync.Once
	attempts attempts
	refused  refusals
}

// SetReady says whether /readyz answers 200 or 503. It may be called at any time.
func (s *Server) SetReady(ready bool) { s.ready.Store(ready) }

// Ready reports what SetReady has said last.
func (s *Server) Ready() bool { return s.ready.Load() }

// Serve answers requests on l until Close. It returns nil then, and why if it
// had to stop earlier.
func (s *Server) Serve(l net.Listener) error {
	s.http.Handler = s.guard(s.routes())
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
	var in net.Listener = socket
	if s.TLS != nil {
		in = tls.NewListener(socket, s.TLS)
	}
	if err := s.http.Serve(in); err != nil && err != http.ErrServerClosed {
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
	dashboard.New().Routes(mux)
	for _, r := range append(s.table(), s.API.table(&s.streams)...) {
		if r.there {
			mux.HandleFunc(r.pattern, r.serve)
		}
	}
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// table is what others may ask besides the API.
func (s *Server) table() []route {
	return []route{
		{"GET /metrics", true, s.scrapes().ServeHTTP},
		{"GET /livez", true, func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "ok") }},
		{"GET /readyz", true, func(w http.ResponseWriter, _ *http.Request) {
			if s.ready.Load() {
				answer(w, http.StatusOK, "ok")
			} else {
				answer(w, http.StatusServiceUnavailable, "not ready")
			}
		}},
	}
}

func answer(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprintln(w, text)
}
