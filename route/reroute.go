package route

import (
	"fmt"

	"github.com/levee-net/levee"
)

// Reroute returns the handler of the route that [levee.Conn.Route] names: that of the connection, when
// another process has routed it. Its matchers are not asked again, as a connection goes on by
// what has let it in. It is an error if there is no such route, if two have the name, or if it refuses
// connections now.
//
// A route may lead to another levee.Rerouter, which is asked in its turn. So the route may be one of a Router inside,
// also of one inside what limit.Gate.Route has returned.
func (r *Router) Reroute(c *levee.Conn) (levee.Handler, error) {
	name := c.Route()
	route, err := r.find(name)
	switch {
	case err != nil:
		return nil, err
	case route.Refuse:
		return nil, route.named(ErrRefused)
	}
	h := route.Handler
	router, inside := h.(levee.Router)
	if !inside {
		return h, nil
	}
	rerouter, ok := router.(levee.Rerouter)
	if !ok {
		return nil, route.named(fmt.Errorf("%T cannot go on with what another process has routed", router))
	}
	return rerouter.Reroute(c)
}

// HasRoute reports whether a route of that name is the router's, or one of a router's to which its routes lead.
func (r *Router) HasRoute(name string) bool {
	for i := range r.Routes {
		if r.Routes[i].leadsTo(name) {
			return true
		}
	}
	return false
}

// leadsTo reports whether a connection with a route of that name may have come this way.
func (route *Route) leadsTo(name string) bool {
	if route.Name == name {
		return true
	}
	inside, ok := route.Handler.(interface{ HasRoute(name string) bool })
	return ok && inside.HasRoute(name)
}

// find returns the one route that leads to that of the name.
func (r *Router) find(name string) (*Route, error) {
	var found *Route
	for i := range r.Routes {
		route := &r.Routes[i]
		switch {
		case !route.leadsTo(name):
		case found != nil:
			return nil, fmt.Errorf("route %q: there are two of the name", name)
		default:
			found = route
		}
	}
	if found == nil {
		return nil, fmt.Errorf("route %q: %w", name, ErrNoMatch)
	}
	return found, nil
}
