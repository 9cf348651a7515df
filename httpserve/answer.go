package httpserve

import (
	"bufio"
	"io"
	"net"
	"net/http"
)

// dress gives a handler's requests their TLS state, and its answers their last
// header.
func dress(next http.Handler) http.Handler {
	if next == nil {
		next = http.DefaultServeMux
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := r.Context().Value(connKey{}).(*conn)
		r.TLS = c.TLS()
		a := &answer{ResponseWriter: w, conn: c}
		next.ServeHTTP(a, r)
		a.begin()
	})
}

// An answer says "Connection: close" if the connection has been asked to leave
// by the time its head is written, however long ago the request came: a client
// that did not know would send the next one into a closed connection. In HTTP/2,
// net/http makes a GOAWAY of it.
//
// It has the methods that net/http's own writers have; ResponseController finds
// the rest by Unwrap.
type answer struct {
	http.ResponseWriter
	conn  *conn
	begun bool
}

// begin completes the head, before it is written.
func (a *answer) begin() {
	if a.begun {
		return
	}
	a.begun = true
	if a.conn.isLeaving() && a.Header().Get("Connection") == "" {
		a.Header().Set("Connection", "close")
	}
}

func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *answer) WriteHeader(status int) {
	if status >= http.StatusOK { // those before are not the answer yet
		a.begin()
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	a.begin()
	return a.ResponseWriter.Write(p)
}

func (a *answer) WriteString(s string) (int, error) {
	a.begin()
	return io.WriteString(a.ResponseWriter, s)
}

// ReadFrom lets a file go out by sendfile(2), as it does without levee.
func (a *answer) ReadFrom(r io.Reader) (int64, error) {
	a.begin()
	return io.Copy(a.ResponseWriter, r)
}

func (a *answer) Flush() { _ = a.FlushError() }

func (a *answer) FlushError() error {
	a.begin()
	return http.NewResponseController(a.ResponseWriter).Flush()
}

// Hijack hands over the connection itself, not net/http's view of it.
func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	nc, rw, err := http.NewResponseController(a.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	return nc.(*conn).Conn, rw, nil
}

func (a *answer) Push(target string, opts *http.PushOptions) error {
	if p, ok := a.ResponseWriter.(http.Pusher); ok {
		return p.Push(target, opts)
	}
	return http.ErrNotSupported
}
