package app

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/levee-net/levee/internal/admin"
)

const api = "/api/v1/"

// ask has the levee do what its API can, and returns its answer, which is also read into the value.
func (r *reached) ask(ctx context.Context, method, path string, body []byte, into any) (text []byte, err error) {
	return r.askWithin(ctx, operatorTimeout, method, path, body, into)
}

// askWithin is ask for what takes longer.
func (r *reached) askWithin(ctx context.Context, limit time.Duration, method, path string, body []byte, into any) (text []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	answer, err := r.do(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	text, err = io.ReadAll(io.LimitReader(answer.Body, longestAnswer))
	if err != nil {
		return nil, exit(exitNotStart, fmt.Errorf("%s: %w", r.address, err))
	}
	return text, understand(answer, r.address, text, into)
}

// get asks what there is to know.
func (r *reached) get(ctx context.Context, what string, into any) error {
	_, err := r.ask(ctx, http.MethodGet, api+what, nil, into)
	return err
}

// Status and what follows is what `levee top` asks.
func (r *reached) Status(ctx context.Context) (s admin.Status, err error) {
	return s, r.get(ctx, "status", &s)
}

// Overload asks what it is short of.
func (r *reached) Overload(ctx context.Context) (o admin.Overload, err error) {
	return o, r.get(ctx, "overload", &o)
}

// Listeners asks for all of them.
func (r *reached) Listeners(ctx context.Context) ([]admin.Listener, error) {
	var all admin.Listeners
	err := r.get(ctx, "listeners", &all)
	return all.Listeners, err
}

// Upstreams asks for all of them.
func (r *reached) Upstreams(ctx context.Context) ([]admin.Upstream, error) {
	var all admin.Upstreams
	err := r.get(ctx, "upstreams", &all)
	return all.Upstreams, err
}

// Connections asks for a page.
func (r *reached) Connections(ctx context.Context, q admin.Query) (c admin.Connections, err error) {
	return c, r.get(ctx, "connections"+queryText(q), &c)
}

// Kill ends a connection.
func (r *reached) Kill(ctx context.Context, id uint64) error {
	_, err := r.ask(ctx, http.MethodDelete, api+"connections/"+strconv.FormatUint(id, 10), nil, nil)
	return err
}

// KillAll ends those that the query is for, and returns how many.
func (r *reached) KillAll(ctx context.Context, q admin.Query) (int, error) {
	var ended admin.Ended
	_, err := r.ask(ctx, http.MethodDelete, api+"connections"+queryText(q), nil, &ended)
	return ended.Ended, err
}

// DrainServer keeps new connections from a server, or lets them there again.
func (r *reached) DrainServer(ctx context.Context, upstream, server string, drain bool) error {
	do := "undrain"
	if drain {
		do = "drain"
	}
	path := api + "upstreams/" + url.PathEscape(upstream) + "/servers/" + url.PathEscape(server) + "/" + do
	_, err := r.ask(ctx, http.MethodPost, path, nil, nil)
	return err
}

// queryText is the query with its question mark, if there is anything to ask for.
func queryText(q admin.Query) string {
	values := make(url.Values)
	for name, value := range map[string]string{
		"listener": q.Listener, "route": q.Route, "upstream": q.Upstream, "server": q.Server, "phase": q.Phase,
		"client": q.Client, "sort": q.Sort, "after": q.After,
	} {
		if value != "" {
			values.Set(name, value)
		}
	}
	if q.Limit > 0 {
		values.Set("limit", strconv.Itoa(q.Limit))
	}
	if len(values) == 0 {
		return ""
	}
	return "?" + values.Encode()
}
