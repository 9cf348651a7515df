package app

import (
	"testing"

	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/route"
)

func TestEveryWordOfTheConfigurationHasItsMatcherOrDialogue(t *testing.T) {
	for _, d := range config.Dialogues() {
		if dialogues[d].Dialogue == nil {
			t.Errorf("starttls: %s has no dialogue", d)
		}
	}
	if len(dialogues) != len(config.Dialogues()) {
		t.Errorf("%d dialogues, of which the configuration knows %d", len(dialogues), len(config.Dialogues()))
	}
	for _, p := range []config.Protocol{
		config.ProtocolHTTP, config.ProtocolTLS, config.ProtocolSSH, config.ProtocolPostgres, config.ProtocolRedis, config.ProtocolMQTT,
	} {
		if protocols[p] == nil {
			t.Errorf("protocol: %s has no matcher", p)
		}
	}
}

// The server ends TLS before any routing where that is the same for all: then nothing has to be looked at twice.
func TestTheServerEndsTLSWhereOnePolicyHoldsForAll(t *testing.T) {
	const own = "tls: {alpn: x}, "
	for _, c := range []struct {
		name, keys, routes string
		server, router     bool
	}{
		{"one route", "tls: {development: true}", "{handler: echo}", true, false},
		{"routes by content", "tls: {development: true}", "{match: {protocol: http}, handler: hello}, {handler: echo}", true, true},
		{"routes by name", "tls: {development: true}", "{match: {sni: a.example}, handler: hello}, {handler: echo}", true, true},
		{"optional", "tls: {mode: optional, development: true}", "{handler: echo}", true, false},
		{"the same terms on all routes", "tls: {development: true}", "{match: {sni: a.example}, " + own + "handler: hello}, {" + own + "handler: echo}", true, true},
		{"plaintext", "tls: {mode: off}", "{handler: echo}", false, false},
		{"plaintext by content", "tls: {mode: off}", "{match: {protocol: http}, handler: hello}, {handler: echo}", false, true},
		{"terms of one route's own", "tls: {development: true}", "{match: {sni: a.example}, " + own + "handler: hello}, {handler: echo}", false, true},
		{"terms that plaintext has not", "tls: {mode: optional, development: true}", "{match: {protocol: http}, " + own + "handler: hello}, {" + own + "handler: echo}, {handler: echo}", false, true},
		{"passthrough", "tls: {mode: passthrough}", "{handler: echo}", false, true},
		{"passthrough of one route", "tls: {development: true}", "{match: {sni: a.example}, tls: passthrough, handler: hello}, {handler: echo}", false, true},
		{"refusal", "tls: {development: true}", "{match: {sni: a.example}, handler: echo}, {refuse: true}", false, true},
		{"a dialogue", "tls: {development: true}, starttls: postgres", "{handler: echo}", false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, err := config.Parse("levee.yaml", []byte(`{version: 1, listeners: [{name: main, listen: ["127.0.0.1:0"], `+c.keys+`, routes: [`+c.routes+`]}]}`))
			if err != nil {
				t.Fatal(err)
			}
			f, err := assemble(cfg, Env{Stderr: t.Output(), lookOnly: true, ConfigDir: func() (string, error) { return t.TempDir(), nil }})
			if err != nil {
				t.Fatal(err)
			}
			s := f.now.Load().servers[0]
			if (s.TLSConfig != nil) != c.server {
				t.Errorf("Server.TLSConfig is %p", s.TLSConfig)
			}
			router, ok := s.Handler.(*route.Router)
			if ok != c.router {
				t.Fatalf("the handler is a %T", s.Handler)
			}
			if ok && c.server && (router.TLS != nil || router.RequireTLS || router.Routes[0].TLS != nil) {
				t.Error("the router would end TLS once more")
			}
		})
	}
}
