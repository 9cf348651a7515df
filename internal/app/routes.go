package app

import (
	"context"
	"fmt"
	"net"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/internal/handlers"
	"github.com/levee-net/levee/proxy"
	"github.com/levee-net/levee/route"
)

// A dialogue is what a protocol says before TLS, and to an upstream whose part has been said.
type dialogue struct {
	route.Dialogue
	meet func(ctx context.Context, c *levee.Conn, upstream net.Conn) error // nil where the client speaks first
}

// dialogues has one for each of config.Dialogues.
var dialogues = map[config.Dialogue]dialogue{
	config.DialogueIMAP:     {route.IMAPTLS, route.MeetIMAP},
	config.DialogueLDAP:     {route.LDAPTLS, nil},
	config.DialogueMySQL:    {route.MySQLTLS(""), route.MeetMySQL},
	config.DialoguePostgres: {route.PostgresTLS, nil},
	config.DialogueSMTP:     {route.SMTPTLS(""), route.MeetSMTP},
}

var protocols = map[config.Protocol]route.Matcher{
	config.ProtocolHTTP:     route.HTTP,
	config.ProtocolTLS:      route.TLS,
	config.ProtocolSSH:      route.SSH,
	config.ProtocolPostgres: route.Postgres,
	config.ProtocolRedis:    route.Redis,
	config.ProtocolMQTT:     route.MQTT,
}

// handlerOf returns the listener's handler. serve returns that of a route; whole is whether the server has ended TLS
// before. One route needs no router, if there is nothing to be told before.
func handlerOf(l *config.Listener, s *security, serve func(i int) levee.Handler) levee.Handler {
	if needsNoRouter(l, s) {
		return serve(0)
	}
	whole := s.whole(l) != nil
	router := &route.Router{StartTLS: dialogues[l.STARTTLS].Dialogue}
	router.RequireTLS = !whole && (l.TLS.Mode == config.TLSTerminate || l.TLS.Mode == config.TLSPassthrough)
	if !whole && s.listener != nil {
		router.TLS = s.listener.config
	}
	for i := range l.Routes {
		r := &l.Routes[i]
		to := route.Route{
			Name:        routeName(l, i),
			Match:       matcherOf(&r.Match),
			Passthrough: l.TLSOf(r).Mode == config.TLSPassthrough,
			Refuse:      r.Refuse,
		}
		if !whole && r.TLS.Mode == config.TLSTerminate {
			to.TLS = s.ofRoute[i].config
		}
		if !r.Refuse {
			to.Handler = serve(i)
		}
		router.Routes = append(router.Routes, to)
	}
	return router
}

func needsNoRouter(l *config.Listener, s *security) bool {
	return len(l.Routes) == 1 && !l.Routes[0].Refuse && (s.whole(l) != nil || l.TLS.Mode == config.TLSOff)
}

// routeName is what logs call the listener's route.
func routeName(l *config.Listener, i int) string {
	if name := l.Routes[i].Name; name != "" {
		return name
	}
	return fmt.Sprintf("routes[%d]", i)
}

// routeIdentity tells a route from others, wherever among them it stands.
func routeIdentity(r *config.Route) string {
	if r.Name != "" {
		return r.Name
	}
	return config.Said(&r.Match)
}

// matcherOf returns nil for a match that takes every connection.
func matcherOf(m *config.Match) route.Matcher {
	var all []route.Matcher
	if len(m.Source) > 0 {
		all = append(all, route.Source(m.Source...))
	}
	if len(m.LocalPort) > 0 {
		ports := make([]uint16, len(m.LocalPort))
		for i, p := range m.LocalPort {
			ports[i] = uint16(p) //nolint:gosec // the configuration has been checked
		}
		all = append(all, route.LocalPort(ports...))
	}
	if len(m.SNI) > 0 {
		all = append(all, route.SNI(config.Texts(m.SNI)...))
	}
	if m.SNIRegexp != "" {
		all = append(all, route.SNIRegexp(m.SNIRegexp))
	}
	if len(m.ALPN) > 0 {
		all = append(all, route.ALPN(config.Texts(m.ALPN)...))
	}
	if len(m.Client) > 0 {
		all = append(all, route.ClientCert(config.Texts(m.Client)...))
	}
	if len(m.Protocol) > 0 {
		any := make([]route.Matcher, len(m.Protocol))
		for i, p := range m.Protocol {
			any[i] = protocols[p]
		}
		all = append(all, route.Any(any...))
	}
	if len(m.Prefix) > 0 {
		all = append(all, route.Prefix(m.Prefixes()...))
	}
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	return route.All(all...)
}

// webHandlers are the built-in handlers that net/http serves.
type webHandlers struct{ hello, challenge levee.Handler }

// handler returns what serves a route's connections.
func (g *generation) handler(l *config.Listener, i int, web *webHandlers) levee.Handler {
	r := &l.Routes[i]
	switch r.Handler {
	case config.HandlerEcho:
		return handlers.Echo
	case config.HandlerDiscard:
		return handlers.Discard
	case config.HandlerHello:
		return helloFor(l, r, web.hello)
	case config.HandlerACME:
		return web.challenge
	}
	for _, b := range g.backends {
		if b.cfg.Name == r.Upstream {
			return &proxy.Proxy{Dial: b.dial, Resume: b.resume, Header: b.header, TraceParent: g.tracing.sentBy(b.cfg), Meet: dialogues[l.STARTTLS].meet}
		}
	}
	return nil
}

// helloFor returns what greets the route's HTTP requests: in plaintext the page,
// which an event loop can serve, and over TLS net/http, which knows HTTP/2.
func helloFor(l *config.Listener, r *config.Route, secure levee.Handler) levee.Handler {
	switch l.TLSOf(r).Mode {
	case config.TLSOff:
		return handlers.HelloPage
	case config.TLSOptional:
		return helloRouter{secure}
	}
	return secure
}

type helloRouter struct{ secure levee.Handler }

var _ levee.Rerouter = helloRouter{}

// Reroute decides as Route does.
func (r helloRouter) Reroute(c *levee.Conn) (levee.Handler, error) {
	return r.Route(context.Background(), c)
}

func (r helloRouter) Route(_ context.Context, c *levee.Conn) (levee.Handler, error) {
	if c.TLS() == nil {
		return handlers.HelloPage, nil
	}
	return r.secure, nil
}

func (r helloRouter) ServeTCP(ctx context.Context, c *levee.Conn) error {
	h, _ := r.Route(ctx, c) // never fails
	return h.ServeTCP(ctx, c)
}
