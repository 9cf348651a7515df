package admin

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// guard lets requests through that an operator makes, and a program of theirs, and refuses those that a page of somebody
// else's makes a browser send, or that somebody sends who knows no better than to try.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		harden(w.Header())
		why, status, text := s.refusal(r)
		if why == fine {
			if r.ContentLength == 0 {
				unhurried(w)
			}
			r.Body = http.MaxBytesReader(w, r.Body, mostBody)
			next.ServeHTTP(w, r)
			return
		}
		s.refused[why].Add(1)
		switch status {
		case http.StatusUnauthorized:
			w.Header().Set("WWW-Authenticate", `Basic realm="levee", charset="UTF-8"`)
		case http.StatusTooManyRequests:
			w.Header().Set("Retry-After", fmt.Sprint(int(mostWrong*wrongEvery/time.Second)))
		}
		if strings.HasPrefix(r.URL.Path, "/api/") {
			reject(w, status, text)
			return
		}
		answer(w, status, text)
	})
}

// unhurried leaves the time to the answer. net/http takes the end of ReadTimeout for the asker's, and cancels the request's
// context, also when all of it has been read.
func unhurried(w http.ResponseWriter) { _ = http.NewResponseController(w).SetReadDeadline(time.Time{}) }

// harden says to browsers what nothing here needs.
func harden(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; connect-src 'self'; img-src 'self' data:; script-src 'self'; style-src 'self'; "+
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Frame-Options", "DENY")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}

// A suspicion is what is wrong with a request.
type suspicion uint8

const (
	fine suspicion = iota
	badHost
	badSite
	badPath
	badMethod
	badBody
	noCertificate
	noToken
	wrongToken
	tooOften

	suspicions
)

var suspicionWords = [suspicions]string{"", "host", "site", "path", "method", "body", "certificate", "no_token", "wrong_token", "too_often"}

// refusal returns what is wrong with a request, and how to say so. What is cheap to know comes first, and a token last: a
// page of somebody else's is not to learn whether the browser has one.
func (s *Server) refusal(r *http.Request) (why suspicion, status int, text string) {
	switch {
	case !s.ours(r.Host):
		return badHost, http.StatusForbidden, "use an address or localhost: the name in the request is not this server's"
	case foreign(r.Header), changes(r) && fromElsewhere(r):
		return badSite, http.StatusForbidden, "not for pages of other sites"
	case !exact(r.URL):
		return badPath, http.StatusNotFound, "there is no such path; write it as it is, without detours"
	case disguised(r):
		return badMethod, http.StatusBadRequest, "a request is what its method says, and no header changes that"
	case r.ContentLength > mostBody:
		return badBody, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes", mostBody)
	case r.URL.Path == "/livez", r.URL.Path == "/readyz": // they say nothing that a connection does not
		return fine, 0, ""
	}
	if s.Client != nil {
		if why, status, text = s.knows(r.TLS); why != fine {
			return why, status, text
		}
	}
	if s.Token != nil {
		return s.tokenIn(r)
	}
	return fine, 0, ""
}

// ours reports whether a Host header names an IP address, localhost, a name that is configured, or nothing at all, as
// clients of a Unix socket may.
func (s *Server) ours(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if host == "" || strings.EqualFold(host, "localhost") {
		return true
	}
	if slices.ContainsFunc(s.Hosts, func(name string) bool { return strings.EqualFold(name, host) }) {
		return true
	}
	_, err := netip.ParseAddr(host)
	return err == nil
}

// exact reports whether a path is written in the one way that there is: what a proxy before us made of another, and what
// it would let through on account of that, nobody knows.
func exact(u *url.URL) bool {
	path := u.EscapedPath()
	if !strings.HasPrefix(path, "/") || strings.ContainsAny(path, `;\`) {
		return false
	}
	for segment := range strings.SplitSeq(path[1:], "/") {
		if segment == "." || segment == ".." {
			return false
		}
	}
	return !strings.Contains(path, "//") && !needlesslyEscaped(path)
}

// needlesslyEscaped reports whether something is escaped that RFC 3986, section 2.3, says not to escape, or that no path
// here has.
func needlesslyEscaped(path string) bool {
	for i := 0; i+2 < len(path); i++ {
		if path[i] != '%' {
			continue
		}
		code := path[i+1 : i+3]
		c, err := url.PathUnescape("%" + code)
		if err != nil || c < " " || c == "\x7f" || c == `\` || c == ";" || strings.ContainsAny(c, unreserved) {
			return true
		}
	}
	return false
}

const unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"

// disguised reports whether the request asks to be taken for another.
func disguised(r *http.Request) bool {
	for _, name := range []string{"X-Http-Method-Override", "X-Http-Method", "X-Method-Override", "X-Original-Url", "X-Rewrite-Url"} {
		if len(r.Header[name]) > 0 {
			return true
		}
	}
	return false
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

// changes reports whether the request may change something.
func changes(r *http.Request) bool { return r.Method != http.MethodGet && r.Method != http.MethodHead }

// fromElsewhere reports whether a page of another site, or of another port of this machine, is behind the request.
// Programs send neither of these headers.
func fromElsewhere(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "none", "same-origin":
	default:
		return true
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	for _, origin := range r.Header.Values("Origin") {
		if u, err := url.Parse(origin); err != nil || u.Scheme != scheme || u.Host != r.Host || u.Host == "" { // "null" has none
			return true
		}
	}
	return false
}

// knows asks for a client's certificate, anew with each request: what lets clients in may have changed.
func (s *Server) knows(state *tls.ConnectionState) (why suspicion, status int, text string) {
	if state == nil || len(state.PeerCertificates) == 0 {
		return noCertificate, http.StatusForbidden, "this needs a client certificate"
	}
	if s.Client(state) != nil {
		return noCertificate, http.StatusForbidden, "the client certificate is not one that is let in"
	}
	return fine, 0, ""
}

// tokenIn looks for the token. It may come as a Bearer (RFC 6750), or as the password of HTTP Basic authentication (RFC
// 7617), whatever the user's name is: browsers have a form for that, and send it to this origin alone, so that there is
// no page to log in with, no cookie and no session; Prometheus and curl have an option for it.
func (s *Server) tokenIn(r *http.Request) (why suspicion, status int, text string) {
	from := sourceOf(r.RemoteAddr)
	if !s.attempts.may(from) {
		return tooOften, http.StatusTooManyRequests, "too many wrong tokens came from there; wait a moment"
	}
	given, ok := tokenOf(r)
	switch {
	case !ok:
		return noToken, http.StatusUnauthorized, "this needs the token, as a Bearer or as the password of whatever user"
	case !s.Token.is(given):
		if s.attempts.wrong(from) {
			s.Log.Warn("admin: a wrong token", "from", r.RemoteAddr)
		}
		return wrongToken, http.StatusUnauthorized, "that is not the token"
	}
	return fine, 0, ""
}

// tokenOf returns what is offered as the token.
func tokenOf(r *http.Request) (token string, ok bool) {
	all := r.Header["Authorization"]
	if len(all) != 1 {
		return "", false
	}
	if _, password, ok := r.BasicAuth(); ok {
		return password, true
	}
	scheme, token, _ := strings.Cut(all[0], " ")
	return token, strings.EqualFold(scheme, "Bearer") && token != ""
}

const (
	mostWrong   = 10          // tokens in a row, from a source
	wrongEvery  = time.Second // and then so often
	mostSources = 1024        // that are told apart: 64 KiB
)

// attempts bound how often somebody may try what is not the token. They bound guessing, and lines in the log.
type attempts struct {
	mu    sync.Mutex
	until map[netip.Prefix]time.Time // when all that a source has done wrong is forgiven
	told  time.Time                  // when the log was told last
}

// may reports whether the source may try.
func (a *attempts) may(from netip.Prefix) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Until(a.until[a.placeLocked(from)]) <= (mostWrong-1)*wrongEvery
}

// wrong notes that the source was wrong, and reports whether the log is to be told: it was not within the last second.
func (a *attempts) wrong(from netip.Prefix) (tell bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.until == nil {
		a.until = make(map[netip.Prefix]time.Time)
	}
	from = a.placeLocked(from)
	now := time.Now()
	forgiven := a.until[from]
	if forgiven.Before(now) {
		forgiven = now
	}
	a.until[from] = forgiven.Add(wrongEvery)
	if tell = now.Sub(a.told) >= time.Second; tell {
		a.told = now
	}
	return tell
}

// placeLocked returns where the source is noted. If there is no room, it shares a place with others.
func (a *attempts) placeLocked(from netip.Prefix) netip.Prefix {
	if _, there := a.until[from]; there || len(a.until) < mostSources {
		return from
	}
	for source, until := range a.until {
		if until.Before(time.Now()) {
			delete(a.until, source)
		}
	}
	if len(a.until) < mostSources {
		return from
	}
	return netip.Prefix{}
}

// sourceOf is an IPv4 address, or the network of an IPv6 address, of which whoever has one has all.
func sourceOf(remote string) netip.Prefix {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	addr := ap.Addr().Unmap().WithZone("")
	if addr.Is4() {
		return netip.PrefixFrom(addr, 32)
	}
	return netip.PrefixFrom(addr, 64).Masked()
}

// refusals are how many requests were refused.
type refusals [suspicions]atomic.Int64

var refusedDesc = prometheus.NewDesc("levee_admin_refused_total", "Requests to the admin port that were refused, by what was wrong with them.", []string{"reason"}, nil)

// Describe implements prometheus.Collector.
func (s *Server) Describe(ch chan<- *prometheus.Desc) { ch <- refusedDesc }

// Collect implements prometheus.Collector.
func (s *Server) Collect(ch chan<- prometheus.Metric) {
	for why := fine + 1; why < suspicions; why++ {
		ch <- prometheus.MustNewConstMetric(refusedDesc, prometheus.CounterValue, float64(s.refused[why].Load()), suspicionWords[why])
	}
}
