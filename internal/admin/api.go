package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"
)

// An API is what operators may ask of a running levee, and have it do, beyond its health. A nil function is a part
// that is not there. They are called by several goroutines.
type API struct {
	Limits   func() Limits
	Overload func() Overload

	Status    func() Status
	Listeners func() Listeners
	Upstreams func() Upstreams
	Config    func() Config

	// Connections returns a page of the open connections. Its errors are the asker's fault.
	Connections func(Query) (Connections, error)
	// Connection returns the open connection with that id.
	Connection func(id uint64) (c Connection, found bool)
	// End ends the open connection with that id, and reports whether there was one.
	End func(id uint64) (found bool)
	// EndAll ends the connections that are asked for, and returns how many. Its errors are the asker's fault.
	EndAll func(Query) (ended int, err error)

	// DrainServer has a server of an upstream get no new connections, or get them again.
	DrainServer func(upstream, server string, drained bool) (found bool)
	// Drain begins the end, and returns how it stands. It may be called again, and then begins nothing.
	Drain func() Status
	// Reload puts in force what the files say now. Its error is why the configuration of before still is.
	Reload func(context.Context) (Generation, error)
	// Upgrade has a new process take the place of this one, and returns when it has, or has failed: then its error
	// is why, and nothing has changed. ErrBusy is of one that was not begun.
	Upgrade func(context.Context) (Upgrade, error)

	// Events are what has happened, and what happens.
	Events Events

	// Bans returns up to most of the bans, and how many are in force.
	Bans func(most int) Bans
	// Ban keeps the clients of a prefix out. Its errors are the asker's fault.
	Ban func(prefix string, d time.Duration, why string) (Ban, error)
	// Lift ends a ban, and reports whether there was one. Its errors are the asker's fault.
	Lift func(prefix string) (found bool, err error)
}

// Limits are what limits have decided so far.
type Limits struct {
	Limits  []Limit  `json:"limits"`
	Clients []Table  `json:"clients"`
	Lists   []List   `json:"lists"`
	Shared  []Shared `json:"shared"`
}

// Limit is a limit with its decisions.
type Limit struct {
	Name        string `json:"limit"`
	Mode        string `json:"mode"`
	Setting     string `json:"setting"` // such as "50/s, burst 100"
	Allowed     int64  `json:"allowed"`
	Refused     int64  `json:"refused"`
	WouldRefuse int64  `json:"would_refuse"`
}

// Table is where a limit remembers clients.
type Table struct {
	Name    string `json:"clients"`
	Entries int    `json:"entries"`
	Used    int    `json:"used"`
	Evicted int64  `json:"evicted"`
	Crowded int64  `json:"crowded"`
}

// List is who may come in at all.
type List struct {
	Name    string    `json:"list"`
	Allow   int       `json:"allow"` // prefixes
	Deny    int       `json:"deny"`
	Refused int64     `json:"refused"`
	Loaded  time.Time `json:"loaded,omitzero"`
	Problem string    `json:"problem,omitempty"` // why its files were not read again
}

// Shared is how it goes with those with whom limits are shared.
type Shared struct {
	Asked        int64     `json:"asked"`
	Failed       int64     `json:"failed"`
	FailingSince time.Time `json:"failing_since,omitzero"`
	Problem      string    `json:"problem,omitempty"`
}

// Bans are who is kept out, and who would be.
type Bans struct {
	Active int   `json:"active"` // how many are kept out
	Bans   []Ban `json:"bans"`   // those that end first, if there are very many
}

// Ban is somebody who is kept out.
type Ban struct {
	Prefix string    `json:"prefix"`
	Until  time.Time `json:"until"`
	Why    string    `json:"why"`
	Shadow bool      `json:"shadow,omitempty"` // who would be, if bans were enforced
}

// Overload is what levee is short of, and what it does about it.
type Overload struct {
	Mode       string             `json:"mode"`
	Pressure   string             `json:"pressure"`
	TurnedAway float64            `json:"turned_away"` // the share of newcomers
	Cause      string             `json:"cause,omitempty"`
	Since      time.Time          `json:"since,omitzero"`
	Load       map[string]float64 `json:"load"` // by input
}

const (
	mostBans = 10_000  // that are shown at once: a megabyte
	mostBody = 4 << 10 // bytes: a ban has a few dozen
)

// A route is what the API answers to.
type route struct {
	pattern string
	there   bool
	serve   http.HandlerFunc
}

// table is all that there may be. The OpenAPI document says the same.
func (a *API) table(s *streams) []route {
	return []route{
		{"GET /api/v1/status", a.Status != nil, tell(func() any { return a.Status() })},
		{"GET /api/v1/listeners", a.Listeners != nil, tell(func() any { return a.Listeners() })},
		{"GET /api/v1/upstreams", a.Upstreams != nil, tell(func() any { return a.Upstreams() })},
		{"POST /api/v1/upstreams/{name}/servers/{server}/drain", a.DrainServer != nil, a.drainServer(true)},
		{"POST /api/v1/upstreams/{name}/servers/{server}/undrain", a.DrainServer != nil, a.drainServer(false)},
		{"GET /api/v1/connections", a.Connections != nil, a.connections},
		{"DELETE /api/v1/connections", a.EndAll != nil, a.endAll},
		{"GET /api/v1/connections/{id}", a.Connection != nil, a.connection},
		{"DELETE /api/v1/connections/{id}", a.End != nil, a.end},
		{"GET /api/v1/config", a.Config != nil, a.config},
		{"POST /api/v1/drain", a.Drain != nil, a.drain},
		{"POST /api/v1/reload", true, a.reload},
		{"POST /api/v1/upgrade", true, a.upgrade},
		{"GET /api/v1/events", a.Events != nil, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, a.Events) }},
		{"GET /api/v1/openapi.json", true, openAPI},
		{"GET /api/v1/limits", a.Limits != nil, tell(func() any { return a.Limits() })},
		{"GET /api/v1/overload", a.Overload != nil, tell(func() any { return a.Overload() })},
		{"GET /api/v1/bans", a.Bans != nil, tell(func() any { return a.Bans(mostBans) })},
		{"POST /api/v1/bans", a.Ban != nil, a.ban},
		{"DELETE /api/v1/bans/{prefix...}", a.Lift != nil, a.lift},
	}
}

// tell answers with what there is to know.
func tell(what func() any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if _, ok := asked(w, r); ok {
			reply(w, http.StatusOK, what())
		}
	}
}

func (a *API) ban(w http.ResponseWriter, r *http.Request) {
	var wanted struct {
		Prefix string `json:"prefix"`
		For    string `json:"for"`
		Why    string `json:"why"`
	}
	if !receive(w, r, &wanted) {
		return
	}
	d, err := time.ParseDuration(wanted.For)
	if err != nil {
		reject(w, http.StatusBadRequest, fmt.Sprintf("for: %q is not a duration; write one such as 10m", wanted.For))
		return
	}
	made, err := a.Ban(wanted.Prefix, d, wanted.Why)
	if err != nil {
		reject(w, http.StatusBadRequest, err.Error())
		return
	}
	reply(w, http.StatusCreated, made)
}

func (a *API) lift(w http.ResponseWriter, r *http.Request) {
	prefix := r.PathValue("prefix")
	if prefix == "" {
		reject(w, http.StatusBadRequest, "name the prefix whose ban is to be lifted")
		return
	}
	switch found, err := a.Lift(prefix); {
	case err != nil:
		reject(w, http.StatusBadRequest, err.Error())
	case !found:
		reject(w, http.StatusNotFound, fmt.Sprintf("%q is not banned", prefix))
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

// receive reads a body of JSON into what is wanted, or answers why not. A page can send a form, but a stranger's can
// not send this type: that is what a preflight asks for, which nothing here answers.
func receive(w http.ResponseWriter, r *http.Request, wanted any) bool {
	if !isJSON(w, r) {
		return false
	}
	in := json.NewDecoder(http.MaxBytesReader(w, r.Body, mostBody))
	in.DisallowUnknownFields()
	err := in.Decode(wanted)
	if err == nil {
		if _, more := in.Token(); more != io.EOF {
			err = errors.New("something follows it")
			if large, ok := errors.AsType[*http.MaxBytesError](more); ok {
				err = large
			}
		}
	}
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		reject(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes", mostBody))
		return false
	}
	if err != nil {
		reject(w, http.StatusBadRequest, "the body is not what is wanted: "+strings.TrimPrefix(err.Error(), "json: "))
		return false
	}
	return true
}

// isJSON is about what the request says that its body is, even if it has none.
func isJSON(w http.ResponseWriter, r *http.Request) bool {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		reject(w, http.StatusUnsupportedMediaType, "the body must be JSON, and its Content-Type application/json")
		return false
	}
	return true
}

// reply answers in JSON.
func reply(w http.ResponseWriter, status int, content any) {
	text, err := json.MarshalIndent(content, "", "  ")
	if err != nil {
		answer(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(text, '\n')) // who asked is gone, or gets it
}

// reject answers that it was not done, and why.
func reject(w http.ResponseWriter, status int, why string) {
	reply(w, status, struct {
		Error string `json:"error"`
	}{why})
}
