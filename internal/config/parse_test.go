package config

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// frame puts keys of a listener into an otherwise good document; they begin on line 4.
func frame(listener string) string {
	return "version: 1\nlisteners:\n- name: main\n" + indent(listener) + "  routes: [{handler: echo}]\n"
}

func indent(s string) string {
	if s == "" {
		return ""
	}
	return "  " + strings.ReplaceAll(s, "\n", "\n  ") + "\n"
}

const loopback = `listen: ["127.0.0.1:8080"]`

// rejected holds documents with the whole of what Parse says about each. Those marked structural must be rejected by
// the schema too.
var rejected = []struct {
	name       string
	doc        string
	structural bool
	want       string
}{
	// The document.
	{"an empty file", "", false, `levee.yaml:1:1: is empty; begin with version: 1`},
	{"only comments", "# nothing\n\n# here\n", false, `levee.yaml:1:1: is empty; begin with version: 1`},
	{"an empty document", "---\n...\n", false, `levee.yaml:1:1: is empty; begin with version: 1`},
	{"a list", "- version: 1\n", true, `levee.yaml:1:1: must be a mapping with version, admin, drain, telemetry and listeners, not a list`},
	{"a word", "levee\n", true, `levee.yaml:1:1: must be a mapping with version, admin, drain, telemetry and listeners, not "levee"`},
	{"a second document", frame(loopback) + "---\nversion: 1\n", false, `levee.yaml:6:1: a second document starts here; a configuration is one document`},
	{"a second document that is not YAML", frame(loopback) + "---\n[\n", false, `levee.yaml:7:2: the file ends where a value is expected; look for a bracket that is never closed`},
	{"not UTF-8", "version: 1 # caf\xe9\n", false, `levee.yaml:1:17: byte 0xe9 is not UTF-8; save the file as UTF-8`},
	{"UTF-16", "\xff\xfev\x00", false, `levee.yaml:1:1: byte 0xff is not UTF-8; save the file as UTF-8`},
	{"an escape sequence", "version: 1\n# \x1b[31m\n", false, `levee.yaml:2:3: control character U+001B; remove it`},
	{"a zero byte", "version: 1\x00\n", false, `levee.yaml:1:11: control character U+0000; remove it`},
	{"a line separator", "a: \u2028b", false, `levee.yaml:1:4: control character U+2028; remove it`},
	{"old Mac line ends", "version: 1\rlisteners: []\r", false, `levee.yaml:1:11: a carriage return without a line feed; save the file with Unix line ends`},
	{"a directive", "%YAML 1.2\n---\nversion: 1\n", false, `levee.yaml:1:1: a line that begins with % is a YAML directive, which is not supported; indent or quote it`},

	// YAML that does not parse.
	{"a tab", "admin:\n\tlisten: off\n", false, `levee.yaml:2:1: a tab cannot indent; use spaces`},
	{"an open bracket", "listeners: [\n\n", false, `levee.yaml:2:1: the file ends where a value is expected; look for a bracket that is never closed`},
	{"an open bracket after a value", "listeners: [a\n\n", false, `levee.yaml:1:12: this "[" is never closed`},
	{"two commas", "listeners: [a, , b]\n", false, `levee.yaml:1:16: a value is missing here`},
	{"an open brace", "admin: {listen: off\n", false, `levee.yaml:1:8: this "{" is never closed`},
	{"an open quote", "admin: {listen: \"off}\n", false, `levee.yaml:1:17: this quote is never closed`},
	{"an IPv6 address without quotes", "listen: [::1]:80\n", false, `levee.yaml:1:14: does not fit what is above it; check the indentation, and the brackets and quotes before it`},
	{"two colons", "admin: listen: off\n", false, `levee.yaml:1:14: unexpected ":"; check the indentation, and put quotes around text that has ": " in it`},
	{"a key without a colon", "version: 1\nadmin\ndrain: {}\n", false, `levee.yaml:3:1: a key without ":"; write key: value`},
	{"a mixed collection", "- a\nb: 1\n", false, `levee.yaml:2:1: does not fit what is above it; check the indentation, and the brackets and quotes before it`},
	{"an at sign", "admin: {listen: @here}\n", false, `levee.yaml:1:17: text cannot begin with "@"; put it in quotes`},
	{"an unknown alias", "admin: *nowhere\n", false, `levee.yaml:1:8: aliases (*name) are not supported; put quotes around text that begins with *`},
	{"a strange escape", "admin: \"\\z\"\n", false, `levee.yaml:1:9: is not YAML: while scanning a quoted scalar: found unknown escape character`},

	// YAML that means more than it says.
	{
		"anchors and aliases", "version: &v 1\ndrain: {timeout: *v}\n" + strings.TrimPrefix(frame(loopback), "version: 1\n"), false,
		`levee.yaml:1:10: version: anchor "v": anchors are not supported; remove it
levee.yaml:2:18: drain.timeout: alias "v": aliases are not supported; write the value out`,
	},
	{"a merge key", frame(loopback + "\n<<: {insecure: true}"), false, `levee.yaml:5:3: listeners[0]: merge keys (<<) are not supported; write the keys out`},
	{"a tag", frame(loopback + "\ninsecure: !!bool true"), false, `levee.yaml:5:13: listeners[0].insecure: tag "!!bool": tags are not supported; remove it`},
	{"a list for a key", frame(loopback + "\n[a, b]: c"), false, `levee.yaml:5:3: listeners[0]: a key must be a plain word`},
	{"an anchor on a key", frame(loopback + "\n&a insecure: true"), false, `levee.yaml:5:3: listeners[0]: anchor "a": anchors are not supported; remove it`},
	{"nothing for a key", frame(loopback + "\n: c"), false, `levee.yaml:5:3: listeners[0]: a key must be a plain word`},

	// Keys.
	{"a misspelt key", "version: 1\nlisteners:\n- naem: main\n  listen: [\"127.0.0.1:1\"]\n  routes: [{handler: echo}]\n", true, `levee.yaml:3:3: listeners[0]: unknown key "naem"; did you mean "name"?`},
	{"a key misspelt and right", frame(loopback + "\ntsl: {}\ntls: {development: true}"), true, `levee.yaml:5:3: listeners[0]: unknown key "tsl"; did you mean "tls"?`},
	{"an abbreviated key", frame(loopback + "\ntls: {dev: true}"), true, `levee.yaml:5:9: listeners[0].tls: unknown key "dev"; did you mean "development"?`},
	{"a key in camel case", frame(loopback + "\nlimits: {maxConnections: 5}"), true, `levee.yaml:5:12: listeners[0].limits: unknown key "maxConnections"; did you mean "max_connections"?`},
	{"a key of no meaning", frame(loopback + "\ntimeouts: {connect: 5s}"), true, `levee.yaml:5:14: listeners[0].timeouts: unknown key "connect"; the keys here are arrival, proxy_header, sniff, idle, half_closed, write_stall and lifetime`},
	{"a key that would hide plaintext", frame("listen: [\":80\"]\ninsecured: true"), true, `levee.yaml:5:3: listeners[0]: unknown key "insecured"; did you mean "insecure"?`},
	{"a key that attacks the terminal", frame(loopback + "\n\"\\e[31m\": 1"), true, `levee.yaml:5:3: listeners[0]: unknown key "\x1b[31m"; the keys here are name, listen, insecure, proxy_protocol, tls, limits, timeouts and routes`},
	{"a very long key", frame(loopback + "\n" + strings.Repeat("k", 500) + ": 1"), true, `levee.yaml:5:3: listeners[0]: unknown key "` + strings.Repeat("k", 60) + `..."; the keys here are name, listen, insecure, proxy_protocol, tls, limits, timeouts and routes`},
	{"a key twice", frame(loopback + "\ninsecure: true\ninsecure: false"), false, `levee.yaml:6:3: listeners[0].insecure: is given twice; the first is on line 5`},
	{"a key without a value", frame(loopback + "\ntls:"), true, `levee.yaml:5:7: listeners[0].tls: has no value; remove the key, or give it a mapping with mode, certificates and development`},
	{
		"missing keys", "version: 1\nlisteners:\n- {}\n", true,
		`levee.yaml:3:3: listeners[0].name: is missing; it takes a name such as public
levee.yaml:3:3: listeners[0].listen: is missing; it takes a list of addresses such as 127.0.0.1:8080
levee.yaml:3:3: listeners[0].routes: is missing; it takes a list of routes such as {handler: echo}`,
	},
	{
		"a missing name beside an open door", "version: 1\nlisteners:\n- listen: [\":80\"]\n  routes: [{handler: echo}]\n", true,
		`levee.yaml:3:3: listeners[0].name: is missing; it takes a name such as public
levee.yaml:3:12: listeners[0].listen[0]: ":80" can be reached from other machines and tls.mode off lets plaintext in; set tls.mode: terminate, or insecure: true if that is meant`,
	},
	{
		"nothing but an unknown key", "upstreams: []\n", true,
		`levee.yaml:1:1: unknown key "upstreams"; the keys here are version, admin, drain, telemetry and listeners
levee.yaml:1:1: version: is missing; it takes the number 1
levee.yaml:1:1: listeners: is missing; it takes a list of listeners, each with name, listen and routes`,
	},

	// Types.
	{"a future version", strings.Replace(frame(loopback), "1", "2", 1), true, `levee.yaml:1:10: version: must be the number 1, not 2`},
	{"a version in quotes", strings.Replace(frame(loopback), "1", `"1"`, 1), true, `levee.yaml:1:10: version: must be the number 1, not "1"`},
	{"a fraction", frame(loopback + "\nlimits: {max_connections: 1.5}"), true, `levee.yaml:5:29: listeners[0].limits.max_connections: must be a whole number from 0 to 10000000, not 1.5`},
	{"a negative count", frame(loopback + "\nlimits: {max_connections: -1}"), true, `levee.yaml:5:29: listeners[0].limits.max_connections: must be a whole number from 0 to 10000000, not -1`},
	{"a count beyond every integer", frame(loopback + "\nlimits: {max_connections: 99999999999999999999}"), true, `levee.yaml:5:29: listeners[0].limits.max_connections: must be a whole number from 0 to 10000000, not 99999999999999999999`},
	{"an octal count", frame(loopback + "\nlimits: {max_connections: 010}"), false, `levee.yaml:5:29: listeners[0].limits.max_connections: must be a whole number from 0 to 10000000, not 010`},
	{"a YAML 1.1 boolean", frame(loopback + "\ninsecure: yes"), true, `levee.yaml:5:13: listeners[0].insecure: must be true or false, not "yes"`},
	{"a list for a boolean", frame(loopback + "\ninsecure: []"), true, `levee.yaml:5:13: listeners[0].insecure: must be true or false, not a list`},
	{"a list for a mapping", frame(loopback + "\ntls: []"), true, `levee.yaml:5:8: listeners[0].tls: must be a mapping with mode, certificates and development, not a list`},
	{"a mapping for a list", frame("listen: {}"), true, `levee.yaml:4:11: listeners[0].listen: must be a list of addresses such as 127.0.0.1:8080, not a mapping`},
	{"an address for a list", frame("listen: 127.0.0.1:80"), true, `levee.yaml:4:11: listeners[0].listen: must be a list; write ["127.0.0.1:80"]`},
	{"a port for a list", frame("listen: 8080"), true, `levee.yaml:4:11: listeners[0].listen: must be a list of addresses such as 127.0.0.1:8080, not 8080`},
	{"a port for an address", frame("listen: [8080]"), true, `levee.yaml:4:12: listeners[0].listen[0]: must be an address such as 127.0.0.1:8080, not 8080`},
	{"an empty list", frame("listen: []"), true, `levee.yaml:4:11: listeners[0].listen: is empty; it takes a list of addresses such as 127.0.0.1:8080`},
	{"no listeners", "version: 1\nlisteners: []\n", true, `levee.yaml:2:12: listeners: is empty; it takes a list of listeners, each with name, listen and routes`},
	{"lists for single values", frame("listen: [[\"127.0.0.1:80\"]]\ntls: {mode: [off]}\ntimeouts: {idle: [5m]}"), true, `levee.yaml:4:12: listeners[0].listen[0]: must be an address such as 127.0.0.1:8080, not a list
levee.yaml:5:15: listeners[0].tls.mode: must be off, terminate or optional, not a list
levee.yaml:6:20: listeners[0].timeouts.idle: must be a duration such as 10s, or off, not a list`},
	{"a list for a drain", "drain: {timeout: []}\n" + frame(loopback), true, `levee.yaml:1:18: drain.timeout: must be a duration such as 10s, not a list`},
	{"a number for a name", strings.Replace(frame(loopback), "main", "42", 1), true, `levee.yaml:3:9: listeners[0].name: must be text; put it in quotes: "42"`},
	{"a name in capitals", strings.Replace(frame(loopback), "main", "Main", 1), true, `levee.yaml:3:9: listeners[0].name: "Main" is not a name; use up to 63 of a-z, 0-9, _ and -, and begin with a letter or digit`},

	// Words.
	{"a misspelt word", frame(loopback + "\ntls: {mode: trminate}"), true, `levee.yaml:5:15: listeners[0].tls.mode: unknown mode "trminate"; did you mean "terminate"?`},
	{"a word of no meaning", frame(loopback + "\ntls: {mode: passthrough}"), true, `levee.yaml:5:15: listeners[0].tls.mode: unknown mode "passthrough"; it takes off, terminate or optional`},
	{"false for off", frame(loopback + "\ntls: {mode: false}"), true, `levee.yaml:5:15: listeners[0].tls.mode: must be off, terminate or optional, not false`},
	{"a log level", "telemetry: {logs: {level: warning, format: logfmt}}\n" + frame(loopback), true, `levee.yaml:1:27: telemetry.logs.level: unknown level "warning"; did you mean "warn"?
levee.yaml:1:44: telemetry.logs.format: unknown format "logfmt"; it takes auto, text or json`},

	// Durations.
	{"a number for a duration", frame(loopback + "\ntimeouts: {idle: 10}"), true, `levee.yaml:5:20: listeners[0].timeouts.idle: 10 has no unit; write 10s if you mean seconds`},
	{"a fraction for a duration", frame(loopback + "\ntimeouts: {idle: 1.5}"), true, `levee.yaml:5:20: listeners[0].timeouts.idle: 1.5 has no unit; write 1.5s if you mean seconds`},
	{"zero for off", frame(loopback + "\ntimeouts: {idle: 0, sniff: 0s}"), true, `levee.yaml:5:20: listeners[0].timeouts.idle: must not be 0; say off to disable it
levee.yaml:5:30: listeners[0].timeouts.sniff: must not be 0; say off to disable it`},
	{"false for a duration", frame(loopback + "\ntimeouts: {idle: false}"), true, `levee.yaml:5:20: listeners[0].timeouts.idle: must be a duration such as 10s, or off, not false`},
	{"infinity", frame(loopback + "\ntimeouts: {idle: .inf, sniff: NaN, lifetime: Inf}"), false, `levee.yaml:5:20: listeners[0].timeouts.idle: must be a duration such as 10s, or off, not .inf
levee.yaml:5:33: listeners[0].timeouts.sniff: "NaN" is not a duration; write one such as 250ms, 10s, 1m30s or 24h
levee.yaml:5:48: listeners[0].timeouts.lifetime: "Inf" is not a duration; write one such as 250ms, 10s, 1m30s or 24h`},
	{"a negative duration", frame(loopback + "\ntimeouts: {idle: -10s}"), true, `levee.yaml:5:20: listeners[0].timeouts.idle: must not be negative; say off to disable it`},
	{"a day", frame(loopback + "\ntimeouts: {lifetime: 1d}"), true, `levee.yaml:5:24: listeners[0].timeouts.lifetime: "1d" is not a duration; write one such as 250ms, 10s, 1m30s or 24h`},
	{"too long", frame(loopback + "\ntimeouts: {idle: 721h, arrival: 24h1s}"), false, `levee.yaml:5:20: listeners[0].timeouts.idle: "721h" is too long; the most is 720h; say off to disable it
levee.yaml:5:35: listeners[0].timeouts.arrival: "24h1s" is too long; the most is 24h; say off to disable it`},
	{"too short", frame(loopback + "\ntimeouts: {idle: 5us}"), false, `levee.yaml:5:20: listeners[0].timeouts.idle: "5us" is too short; the least is 1ms`},
	{"longer than any duration", frame(loopback + "\ntimeouts: {idle: 99999999999h}"), false, `levee.yaml:5:20: listeners[0].timeouts.idle: "99999999999h" is too long; the most is 720h; say off to disable it`},
	{"no drain", "drain: {timeout: off, pre_stop: -1s}\n" + frame(loopback), true, `levee.yaml:1:18: drain.timeout: "off" is not a duration; write one such as 250ms, 10s, 1m30s or 24h
levee.yaml:1:33: drain.pre_stop: must not be negative`},
	{"a drain of no time", "drain: {timeout: 0}\n" + frame(loopback), true, `levee.yaml:1:18: drain.timeout: must be more than 0`},

	// Addresses and prefixes.
	{"no port", frame(`listen: ["127.0.0.1", "::1", "db.example.com", "[::1]", "::1:80", "", "a b"]`), true, `levee.yaml:4:12: listeners[0].listen[0]: "127.0.0.1" has no port; write 127.0.0.1:8080
levee.yaml:4:25: listeners[0].listen[1]: "::1" has no port; write [::1]:8080
levee.yaml:4:32: listeners[0].listen[2]: "db.example.com" has no port; write db.example.com:8080
levee.yaml:4:50: listeners[0].listen[3]: "[::1]" is not host:port; an IPv6 address goes in brackets, such as [::1]:8080
levee.yaml:4:59: listeners[0].listen[4]: "::1:80" has no port; write [::1:80]:8080
levee.yaml:4:69: listeners[0].listen[5]: is empty; write an address such as 127.0.0.1:8080
levee.yaml:4:73: listeners[0].listen[6]: "a b" is not an address; write one such as 127.0.0.1:8080`},
	{"a strange port", frame(`listen: ["127.0.0.1:65536", "127.0.0.1:http", "127.0.0.1:"]`), true, `levee.yaml:4:12: listeners[0].listen[0]: "127.0.0.1:65536": port "65536" is not a number from 0 to 65535
levee.yaml:4:31: listeners[0].listen[1]: "127.0.0.1:http": port "http" is not a number from 0 to 65535
levee.yaml:4:49: listeners[0].listen[2]: "127.0.0.1:": port "" is not a number from 0 to 65535`},
	{"a strange host", frame(`listen: ["300.1.2.3:80", "a b:80", "[fe80::1%e;h]:80"]`), false, `levee.yaml:4:12: listeners[0].listen[0]: "300.1.2.3:80": "300.1.2.3" is neither an IP address nor a host name
levee.yaml:4:28: listeners[0].listen[1]: "a b:80": "a b" is neither an IP address nor a host name
levee.yaml:4:38: listeners[0].listen[2]: "[fe80::1%e;h]:80": "fe80::1%e;h" is neither an IP address nor a host name`},
	{"a strange prefix", frame(loopback + "\nproxy_protocol: {from: [10.0.0.1/8, \"::ffff:10.0.0.0/104\", lan, 10.0.0.0/33, 10]}"), true, `levee.yaml:5:27: listeners[0].proxy_protocol.from[0]: "10.0.0.1/8" has bits set beyond its length; write 10.0.0.0/8
levee.yaml:5:39: listeners[0].proxy_protocol.from[1]: "::ffff:10.0.0.0/104" is IPv4 in IPv6; write the IPv4 prefix
levee.yaml:5:62: listeners[0].proxy_protocol.from[2]: "lan" is not a prefix; write one such as 10.0.0.0/8, or an address
levee.yaml:5:67: listeners[0].proxy_protocol.from[3]: "10.0.0.0/33" is not a prefix; write one such as 10.0.0.0/8, or an address
levee.yaml:5:80: listeners[0].proxy_protocol.from[4]: must be a prefix such as 10.0.0.0/8, not 10`},
	{"a proxy_protocol for nobody", frame(loopback + "\nproxy_protocol: {}"), true, `levee.yaml:5:19: listeners[0].proxy_protocol.from: is missing; it takes a list of prefixes such as 10.0.0.0/8`},
	{"an admin that others reach", "admin: {listen: \":9180\"}\n" + frame(loopback), false, `levee.yaml:1:17: admin.listen: ":9180" can be reached from other machines; use a loopback address such as 127.0.0.1:9180, or unix:/run/levee/admin.sock`},
	{"a relative socket", "admin: {listen: \"unix:admin.sock\"}\n" + frame(loopback), true, `levee.yaml:1:17: admin.listen: "unix:admin.sock": the path of a unix socket must be absolute, such as unix:/run/levee/admin.sock`},
	{"a folder for a socket", "admin: {listen: \"unix:/\"}\n" + frame(loopback), true, `levee.yaml:1:17: admin.listen: "unix:/" names a folder, not a socket`},
	{"a socket path that does not fit", "admin: {listen: \"unix:/" + strings.Repeat("x", 107) + "\"}\n" + frame(loopback), false, `levee.yaml:1:17: admin.listen: "unix:/` + strings.Repeat("x", 54) + `...": the path of a unix socket has at most 107 bytes, this has 108`},

	// Certificates.
	{"half a certificate", frame(loopback + "\ntls: {certificates: [{cert: a.pem}]}"), true, `levee.yaml:5:24: listeners[0].tls.certificates[0].key: is missing; it takes the path of a PEM file`},
	{"a certificate of no name", frame(loopback + "\ntls: {certificates: [{cert: \"\", key: \"a\\0\"}]}"), true, `levee.yaml:5:31: listeners[0].tls.certificates[0].cert: is empty; it takes the path of a PEM file
levee.yaml:5:40: listeners[0].tls.certificates[0].key: "a\x00" has a control character in it`},
	{"TLS without a certificate", frame(loopback + "\ntls: {}"), false, `levee.yaml:5:8: listeners[0].tls: mode terminate needs a certificate; add certificates: [{cert: a.pem, key: a-key.pem}], or development: true`},
	{"two sources of certificates", frame(loopback + "\ntls: {development: true, certificates: [{cert: a, key: b}]}"), false, `levee.yaml:5:8: listeners[0].tls: has both certificates and development: true; keep one of them`},
	{"a certificate for plaintext", frame(loopback + "\ntls: {mode: off, development: true}"), false, `levee.yaml:5:8: listeners[0].tls: mode is off, yet there is a certificate; remove it, or set mode: terminate`},
	{"plaintext for others", frame(`listen: ["127.0.0.1:80", "0.0.0.0:81", "[::]:82", ":83", "example.com:84", "localhost:85"]`), false, `levee.yaml:4:28: listeners[0].listen[1]: "0.0.0.0:81" can be reached from other machines and tls.mode off lets plaintext in; set tls.mode: terminate, or insecure: true if that is meant
levee.yaml:4:42: listeners[0].listen[2]: "[::]:82" can be reached from other machines and tls.mode off lets plaintext in; set tls.mode: terminate, or insecure: true if that is meant
levee.yaml:4:53: listeners[0].listen[3]: ":83" can be reached from other machines and tls.mode off lets plaintext in; set tls.mode: terminate, or insecure: true if that is meant
levee.yaml:4:60: listeners[0].listen[4]: "example.com:84" can be reached from other machines and tls.mode off lets plaintext in; set tls.mode: terminate, or insecure: true if that is meant`},
	{"an open door, if that could be read", frame("listen: [\":80\"]\ninsecure: maybe"), true, `levee.yaml:5:13: listeners[0].insecure: must be true or false, not "maybe"`},
	{"plaintext for others, if that could be read", frame("listen: [\":80\"]\ntls: {mode: trminate, development: true}"), true, `levee.yaml:5:15: listeners[0].tls.mode: unknown mode "trminate"; did you mean "terminate"?`},
	{"TLS for others, but misspelt", frame("listen: [\":80\"]\ntls: {mdoe: terminate, development: true}"), true, `levee.yaml:5:9: listeners[0].tls: unknown key "mdoe"; did you mean "mode"?`},
	{"optional TLS for others", frame("listen: [\":80\"]\ntls: {mode: optional, development: true}"), false, `levee.yaml:4:12: listeners[0].listen[0]: ":80" can be reached from other machines and tls.mode optional lets plaintext in; set tls.mode: terminate, or insecure: true if that is meant`},

	// Several listeners and routes.
	{"a name twice", frame(loopback) + "- name: main\n  listen: [\"127.0.0.1:81\"]\n  routes: [{handler: echo}]\n", false, `levee.yaml:6:3: listeners[1].name: "main" is the name of listeners[0] already; names are unique`},
	{"addresses in each other's way", "admin: {listen: \"localhost:80\"}\n" + frame(`listen: ["127.0.0.1:80", "127.0.0.2:80", "[::]:80", "[::ffff:127.0.0.2]:80", "127.0.0.1:81", "127.0.0.1:0", "127.0.0.1:0"]`+"\ninsecure: true") +
		"- name: b\n  listen: [\"127.0.0.1:81\"]\n  routes: [{handler: echo}]\n", false, `levee.yaml:5:12: listeners[0].listen[0]: 127.0.0.1:80 cannot be bound beside localhost:80 (admin.listen); change one of them
levee.yaml:5:44: listeners[0].listen[2]: [::]:80 cannot be bound beside localhost:80 (admin.listen); change one of them
levee.yaml:5:55: listeners[0].listen[3]: [::ffff:127.0.0.2]:80 cannot be bound beside 127.0.0.2:80 (listeners[0].listen[1]); change one of them
levee.yaml:9:12: listeners[1].listen[0]: 127.0.0.1:81 cannot be bound beside 127.0.0.1:81 (listeners[0].listen[4]); change one of them`},
	{"no default route", routes("{match: {protocol: http}, handler: hello}"), false, `levee.yaml:5:19: listeners[0].routes[0]: has a match, and no route follows for the connections it leaves; add one without match, such as {handler: discard}`},
	{"a route behind the default", routes("{handler: echo}, {match: {protocol: http}, handler: hello}"), false, `levee.yaml:5:36: listeners[0].routes[1]: is never reached: routes[0] has no match and takes every connection; move that one to the end`},
	{"a route twice", routes("{match: {protocol: http}, handler: hello}, {match: {protocol: http}, handler: echo}, {handler: echo}"), false, `levee.yaml:5:62: listeners[0].routes[1]: is never reached: routes[0] takes the same connections`},
	{"a match of nothing", routes("{match: {}, handler: hello}"), true, `levee.yaml:5:27: listeners[0].routes[0].match: is empty; remove it, or give it protocol`},
	{"a match of what is to come", routes("{match: {sni: [a]}, handler: hello}, {handler: echo}"), true, `levee.yaml:5:28: listeners[0].routes[0].match: unknown key "sni"; the keys here are protocol`},
	{"no routes", routes(""), true, `levee.yaml:5:18: listeners[0].routes: is empty; it takes a list of routes such as {handler: echo}`},
	{"a route to nobody", routes("{match: {protocol: tls}}, {handler: ecko}"), true, `levee.yaml:5:19: listeners[0].routes[0].handler: is missing; it takes echo, discard or hello
levee.yaml:5:55: listeners[0].routes[1].handler: unknown handler "ecko"; did you mean "echo"?`},
}

func routes(list string) string {
	return "version: 1\nlisteners:\n- name: main\n  " + loopback + "\n  routes:        [" + list + "]\n"
}

func TestParseNamesEveryProblemOfAFile(t *testing.T) {
	for _, c := range rejected {
		t.Run(c.name, func(t *testing.T) {
			cfg, err := Parse("levee.yaml", []byte(c.doc))
			if err == nil {
				t.Fatalf("accepted:\n%s", c.doc)
			}
			if cfg != nil {
				t.Error("returned a Config beside the error")
			}
			if err.Error() != c.want {
				t.Errorf("got:\n%v\nwant:\n%s\nfor:\n%s", err, c.want, c.doc)
			}
			if problems := (*Problems)(nil); !errors.As(err, &problems) {
				t.Errorf("the error is a %T", err)
			}
		})
	}
}

func TestProblemsAreSortedAndCounted(t *testing.T) {
	var doc strings.Builder
	doc.WriteString(frame(loopback + "\ntls: {}")) // found last, stands first
	for i := range 30 {
		fmt.Fprintf(&doc, "unknown_%d: 1\n", i)
	}
	_, err := Parse("levee.yaml", []byte(doc.String()))
	var problems *Problems
	if !errors.As(err, &problems) {
		t.Fatal(err)
	}
	lines := strings.Split(err.Error(), "\n")
	if len(problems.List) != 20 || problems.More != 11 || len(lines) != 21 {
		t.Errorf("got %d problems, %d more, in %d lines; want 20, 11 and 21", len(problems.List), problems.More, len(lines))
	}
	if want := "levee.yaml: and 11 more"; lines[20] != want {
		t.Errorf("last line %q, want %q", lines[20], want)
	}

	_, err = Parse("levee.yaml", []byte(frame(loopback+"\ntls: {}")+"unknown: 1\n"))
	if want := "levee.yaml:5:8: listeners[0].tls: "; !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got:\n%v\nwant it to begin with %s", err, want)
	}
}

// A file may be hostile, or the wrong file: what it costs is bounded, whatever it holds.
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
	for _, c := range []struct{ name, doc, want string }{
		{"too large", fill("# bytes\n") + "#", `levee.yaml:1:1: has more than 1048576 bytes`},
		{"flow nesting", fill("["), `levee.yaml:1:33: is nested more than 32 levels deep`},
		{"brace nesting", fill("{a: "), `levee.yaml:1:129: is nested more than 32 levels deep`},
		{"block nesting", fill("- "), `levee.yaml:1:65: is nested more than 32 levels deep`},
		{"key nesting", fill("? "), `levee.yaml:1:65: is nested more than 32 levels deep`},
		{"a billion laughs", laughs, `levee.yaml:1:1: unknown key "a"; the keys here are version, admin, drain, telemetry and listeners`},
		{"directives", fill("%TAG !a! b\n"), `levee.yaml:1:1: a line that begins with % is a YAML directive, which is not supported; indent or quote it`},
		{"documents", fill("---\n"), `levee.yaml:1:1: is empty; begin with version: 1`},
		{"unknown keys", strings.Repeat("a: 1\n", 20_000), `levee.yaml:1:1: unknown key "a"; the keys here are version, admin, drain, telemetry and listeners`},
		{"one key", "version: 1\n" + strings.Repeat("version: 1\n", 90_000), `levee.yaml:2:1: version: is given twice; the first is on line 1`},
		{"one word", fill("a"), `levee.yaml:1:1: must be a mapping with version, admin, drain, telemetry and listeners, not "` + strings.Repeat("a", 60) + `..."`},
		{"one number", fill("1"), `levee.yaml:1:1: must be a mapping with version, admin, drain, telemetry and listeners, not "` + strings.Repeat("1", 60) + `..."`},
		{"one duration", "drain: {timeout: " + strings.Repeat("1h", maxSize/4) + "}\n" + frame(loopback), `levee.yaml:1:18: drain.timeout: "` + strings.Repeat("1h", 30) + `..." is too long; the most is 24h`},
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
