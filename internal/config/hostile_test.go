//go:build !race

package config

import (
	"fmt"
	"strings"
	"testing"
)

// A file may be hostile, or the wrong file: what it costs is bounded, whatever it holds. These are documents of a megabyte,
// read in one goroutine: the race detector has nothing to find there, and would take ten times as long.
func TestHostileDocumentsAreRefused(t *testing.T) {
	fill := func(s string) string { return strings.Repeat(s, maxSize/len(s)) }
	laughs := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c <= 'z'; c++ {
		laughs += fmt.Sprintf("%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", c-1), 9), ","))
	}
	var addresses strings.Builder
	for i := range 30_000 {
		fmt.Fprintf(&addresses, `"127.%d.%d.%d:80",`, i/65536, i/256%256, i%256)
	}
	var upstreams strings.Builder
	for i := range 1_000 {
		fmt.Fprintf(&upstreams, "{name: aaaaaaaaaaaaaaaaaaaaaaaaaa-%d, servers: [a:1]}, ", i)
	}
	var byName, manyNames strings.Builder
	for i := range 15_000 {
		fmt.Fprintf(&byName, "{match: {sni: a%d.example}, handler: echo}, ", i)
		fmt.Fprintf(&manyNames, "a%d.example, ", i)
	}
	for _, c := range []struct{ name, doc, want string }{
		{"too large", fill("# bytes\n") + "#", `levee.yaml:1:1: has more than 1048576 bytes`},
		{"flow nesting", fill("["), `levee.yaml:1:33: is nested more than 32 levels deep`},
		{"brace nesting", fill("{a: "), `levee.yaml:1:129: is nested more than 32 levels deep`},
		{"block nesting", fill("- "), `levee.yaml:1:65: is nested more than 32 levels deep`},
		{"key nesting", fill("? "), `levee.yaml:1:65: is nested more than 32 levels deep`},
		{"a billion laughs", laughs, `levee.yaml:1:1: unknown key "a"; the keys here are version, admin, drain, upgrade, telemetry, redis, limits, overload, listeners and upstreams`},
		{"directives", fill("%TAG !a! b\n"), `levee.yaml:1:1: a line that begins with % is a YAML directive, which is not supported; indent or quote it`},
		{"documents", fill("---\n"), `levee.yaml:1:1: is empty; begin with version: 1`},
		{"unknown keys", strings.Repeat("a: 1\n", 20_000), `levee.yaml:1:1: unknown key "a"; the keys here are version, admin, drain, upgrade, telemetry, redis, limits, overload, listeners and upstreams`},
		{"one key", "version: 1\n" + strings.Repeat("version: 1\n", 90_000), `levee.yaml:2:1: version: is given twice; the first is on line 1`},
		{"one word", fill("a"), `levee.yaml:1:1: must be a mapping with version, admin, drain, upgrade, telemetry, redis, limits, overload, listeners and upstreams, not "` + strings.Repeat("a", 60) + `..."`},
		{"one number", fill("1"), `levee.yaml:1:1: must be a mapping with version, admin, drain, upgrade, telemetry, redis, limits, overload, listeners and upstreams, not "` + strings.Repeat("1", 60) + `..."`},
		{"one duration", "drain: {timeout: " + strings.Repeat("1h", maxSize/4) + "}\n" + frame(loopback), `levee.yaml:1:18: drain.timeout: "` + strings.Repeat("1h", 30) + `..." is too long; the most is 24h`},
		{"upstreams that do not exist", routes(strings.Repeat("{upstream: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa}, ", 1_000)) + "upstreams: [" + upstreams.String() + "]", `levee.yaml:5:19: listeners[0].routes[0].upstream: there is no upstream "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"; did you mean "aaaaaaaaaaaaaaaaaaaaaaaaaa-0"?`},
		{"servers twice", front("db", "servers: ["+strings.Repeat("a:1, ", 20_000)+"]"), `levee.yaml:8:18: upstreams[0].servers[1]: "a:1" is servers[0] already; write each server once, and its share as its weight`},
		{"routes by name", listenerWith("tls: {development: true}", byName.String()+"{match: {sni: A0.example}, handler: echo}, {match: {sni: x}, handler: echo}"), `levee.yaml:6:693952: listeners[0].routes[15001]: has a match, and no route follows for the connections it leaves; add one without match, such as {refuse: true}`},
		{"routes by many names", listenerWith("tls: {development: true}", "{match: {sni: ["+manyNames.String()+"]}, handler: echo}, {match: {sni: ["+manyNames.String()+"]}, handler: echo}, {match: {sni: x}, handler: echo}"), `levee.yaml:6:457869: listeners[0].routes[2]: has a match, and no route follows for the connections it leaves; add one without match, such as {refuse: true}`},
		{"application protocols", listenerWith("tls: {development: true, alpn: ["+manyNames.String()+"]}", "{match: {alpn: ["+manyNames.String()+" x]}, handler: echo}, {handler: echo}"), `levee.yaml:6:228926: listeners[0].routes[0].match.alpn[15000]: "x" is never agreed on; tls.alpn has "a0.example", "a1.example", "a2.example", "a3.example", ...`},
		{"ports", listenerWith("tls: {development: true}", "{match: {local_port: ["+strings.Repeat("81, ", 100_000)+"]}, handler: echo}, {handler: echo}"), `levee.yaml:6:27: listeners[0].routes[0].match.local_port[0]: the listener has no port 81`},
		{"addresses", frame("listen: [" + addresses.String() + "\":80\"]\ninsecure: true"), `levee.yaml:4:528924: listeners[0].listen[30000]: :80 cannot be bound beside 127.0.0.0:80 (listeners[0].listen[0]); change one of them`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("levee.yaml", []byte(c.doc))
			if err == nil {
				t.Fatal("accepted")
			}
			if first, _, _ := strings.Cut(err.Error(), "\n"); first != c.want {
				t.Errorf("got  %s\nwant %s", first, c.want)
			}
			if len(err.Error()) > 10_000 {
				t.Errorf("the message has %d bytes", len(err.Error()))
			}
		})
	}
}
