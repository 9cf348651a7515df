package admin

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

const (
	fewConns  = 100 // of a page that says no limit
	mostOfAll = 1000
)

// asked reads a request's query, of which the names must all be among those given, each once.
func asked(w http.ResponseWriter, r *http.Request, names ...string) (values map[string]string, ok bool) {
	given, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		reject(w, http.StatusBadRequest, "the query is not well formed: "+err.Error())
		return nil, false
	}
	values = make(map[string]string, len(given))
	for _, name := range names {
		if v := given[name]; len(v) == 1 {
			values[name] = v[0]
		}
		if len(given[name]) <= 1 {
			delete(given, name)
		}
	}
	for name := range given {
		reject(w, http.StatusBadRequest, fmt.Sprintf("the query has %q, which is not known here or is there twice", name))
		return nil, false
	}
	return values, true
}

// query reads which connections are asked for.
func query(w http.ResponseWriter, r *http.Request, more ...string) (q Query, ok bool) {
	v, ok := asked(w, r, append(more, "listener", "route", "upstream", "server", "phase", "client")...)
	if !ok {
		return Query{}, false
	}
	q = Query{
		Listener: v["listener"], Route: v["route"], Upstream: v["upstream"], Server: v["server"],
		Phase: v["phase"], Client: v["client"], Sort: v["sort"], After: v["after"], Limit: fewConns,
	}
	if limit, given := v["limit"]; given {
		n, err := strconv.Atoi(limit)
		if err != nil || n < 1 || n > mostOfAll {
			reject(w, http.StatusBadRequest, fmt.Sprintf("limit: %q is not a number from 1 to %d", limit, mostOfAll))
			return Query{}, false
		}
		q.Limit = n
	}
	return q, true
}

func (a *API) connections(w http.ResponseWriter, r *http.Request) {
	q, ok := query(w, r, "sort", "limit", "after")
	if !ok {
		return
	}
	page, err := a.Connections(q)
	if err != nil {
		reject(w, http.StatusBadRequest, err.Error())
		return
	}
	reply(w, http.StatusOK, page)
}

func (a *API) endAll(w http.ResponseWriter, r *http.Request) {
	q, ok := query(w, r)
	if !ok {
		return
	}
	if q == (Query{Limit: q.Limit}) {
		reject(w, http.StatusBadRequest, "say which: by listener, route, upstream, server, phase or client")
		return
	}
	ended, err := a.EndAll(q)
	if err != nil {
		reject(w, http.StatusBadRequest, err.Error())
		return
	}
	reply(w, http.StatusOK, Ended{ended})
}

// id reads a connection's number from the path.
func id(w http.ResponseWriter, r *http.Request) (n uint64, ok bool) {
	text := r.PathValue("id")
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || strconv.FormatUint(n, 10) != text {
		reject(w, http.StatusBadRequest, fmt.Sprintf("%q is not the number of a connection", text))
		return 0, false
	}
	return n, true
}

func (a *API) connection(w http.ResponseWriter, r *http.Request) {
	n, ok := id(w, r)
	if !ok {
		return
	}
	c, found := a.Connection(n)
	if !found {
		reject(w, http.StatusNotFound, fmt.Sprintf("there is no open connection %d", n))
		return
	}
	reply(w, http.StatusOK, c)
}

func (a *API) end(w http.ResponseWriter, r *http.Request) {
	n, ok := id(w, r)
	if !ok {
		return
	}
	if !a.End(n) {
		reject(w, http.StatusNotFound, fmt.Sprintf("there is no open connection %d", n))
		return
	}
	reply(w, http.StatusOK, Ended{1})
}

func (a *API) config(w http.ResponseWriter, r *http.Request) {
	v, ok := asked(w, r, "format")
	if !ok {
		return
	}
	c := a.Config()
	switch format := v["format"]; format {
	case "", "json":
		reply(w, http.StatusOK, c)
	case "yaml":
		w.Header().Set("Content-Type", "application/yaml")
		w.Header().Set("Levee-Generation", strconv.Itoa(c.Generation.Number))
		_, _ = w.Write([]byte(c.YAML)) // who asked is gone, or gets it
	default:
		reject(w, http.StatusBadRequest, fmt.Sprintf("format: %q is neither json nor yaml", format))
	}
}

func (a *API) drainServer(drained bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !empty(w, r) {
			return
		}
		upstream, server := r.PathValue("name"), r.PathValue("server")
		if !a.DrainServer(upstream, server, drained) {
			reject(w, http.StatusNotFound, fmt.Sprintf("there is no server %q of an upstream %q", server, upstream))
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

func (a *API) drain(w http.ResponseWriter, r *http.Request) {
	if empty(w, r) {
		reply(w, http.StatusAccepted, a.Drain())
	}
}

func (a *API) reload(w http.ResponseWriter, r *http.Request) {
	if !empty(w, r) {
		return
	}
	if a.Reload == nil {
		reject(w, http.StatusNotImplemented, "this levee cannot reload its configuration")
		return
	}
	g, err := a.Reload(r.Context())
	if err != nil {
		reject(w, http.StatusUnprocessableEntity, err.Error())
		return
	}
	reply(w, http.StatusOK, g)
}

// ErrBusy is why an upgrade is not begun: another is under way, or the process is about to end.
var ErrBusy = errors.New("not now")

func (a *API) upgrade(w http.ResponseWriter, r *http.Request) {
	if !empty(w, r) {
		return
	}
	if a.Upgrade == nil {
		reject(w, http.StatusNotImplemented, "this levee cannot be upgraded while it runs")
		return
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) // each of its steps has a bound
	u, err := a.Upgrade(r.Context())
	switch {
	case errors.Is(err, ErrBusy):
		reject(w, http.StatusConflict, err.Error())
	case err != nil:
		reject(w, http.StatusUnprocessableEntity, err.Error())
	default:
		reply(w, http.StatusOK, u)
	}
}

// empty takes a body that says nothing, as JSON all the same: see receive.
func empty(w http.ResponseWriter, r *http.Request) bool {
	if _, ok := asked(w, r); !ok {
		return false
	}
	if r.ContentLength == 0 {
		return isJSON(w, r)
	}
	if !receive(w, r, new(struct{})) {
		return false
	}
	unhurried(w)
	return true
}
