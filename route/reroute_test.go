package route_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/route"
)

// A place is a handler that can be told from others.
type place string

func (place) ServeTCP(context.Context, *levee.Conn) error { return nil }

// goesOn returns which handler goes on with what a router has routed by a name: that of the connection when it was served.
func goesOn(t *testing.T, name string, server string, next levee.Rerouter) (h levee.Handler, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		asked := levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
			h, err = next.Reroute(c)
			return nil
		})
		s := serve(t, &levee.Server{Route: server, Handler: &route.Router{Routes: []route.Route{{Name: name, Handler: asked}}}})
		_, _ = io.ReadAll(s.dial(t))
	})
	return h, err
}

func TestWhatAnotherProcessHasRoutedGoesOnByItsName(t *testing.T) {
	inside := &route.Router{Routes: []route.Route{{Name: "x", Handler: place("x")}, {Handler: place("nameless")}}}
	only := &route.Router{Routes: []route.Route{{Name: "only", Handler: place("only")}}}
	next := &route.Router{Routes: []route.Route{
		{Name: "ssh", Match: route.SSH, Handler: place("ssh")}, // which the bytes did not match
		{Name: "closed", Refuse: true},
		{Name: "twice", Handler: place("one")},
		{Name: "twice", Handler: place("other")},
		{Name: "in", Handler: inside},
		{Name: "limited", Handler: behind{only}},
		{Name: "decides", Handler: decides{}},
	}}
	for _, test := range []struct {
		name, server string
		want         levee.Handler
		err          error
		text         string
	}{
		{name: "ssh", want: place("ssh")},
		{name: "closed", err: route.ErrRefused, text: "route closed: refused"},
		{name: "gone", err: route.ErrNoMatch, text: `route "gone": no route matches`},
		{name: "twice", text: `route "twice": there are two of the name`},
		{name: "x", want: place("x")},
		{name: "", want: place("nameless")},
		{name: "in", err: route.ErrNoMatch, text: `route "in": no route matches`},
		{name: "only", want: place("only")},
		{name: "limited", err: route.ErrNoMatch, text: `route "limited": no route matches`},
		{name: "", server: "ssh", want: place("ssh")}, // the server had one route, and no router
		{name: "decides", text: "route decides: route_test.decides cannot go on with what another process has routed"},
	} {
		h, err := goesOn(t, test.name, test.server, next)
		switch {
		case test.text == "" && (h != test.want || err != nil):
			t.Errorf("%s: %v, %v, want %v", test.name, h, err, test.want)
		case test.text != "" && (err == nil || err.Error() != test.text || test.err != nil && !errors.Is(err, test.err)):
			t.Errorf("%s: %v, %v, want %s", test.name, h, err, test.text)
		}
	}
}

// behind is what stands before another router, as limit's routes do.
type behind struct{ *route.Router }

func (b behind) Reroute(c *levee.Conn) (levee.Handler, error) { return b.Router.Reroute(c) }

// decides is a Router that only decides.
type decides struct{ place }

func (decides) Route(context.Context, *levee.Conn) (levee.Handler, error) {
	return place("decided"), nil
}
