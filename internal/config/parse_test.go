package config

import (
	"errors"
	"fmt"
	"slices"
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

// front puts keys of an upstream into an otherwise good document, which routes everything to it; they begin on line 8.
func front(name, upstream string) string {
	return "version: 1\nlisteners:\n- name: main\n  " + loopback + "\n  routes: [{upstream: " + name + "}]\nupstreams:\n- name: " + name + "\n" + indent(upstream)
}

// behind puts keys of an upstream that has its servers into an otherwise good document; they begin on line 9.
func behind(upstream string) string { return front("db", "servers: [a:1]\n"+upstream) }

const loopback = `listen: ["127.0.0.1:8080"]`

// rejected holds documents with the whole of what Parse says about each. Those marked structural must be rejected by
// the schema too.
var rejected = slices.Concat(rejectedInGeneral, rejectedTLS, rejectedRoutes, rejectedACME, rejectedLimits)

type rejection struct {
	name       string
	doc        string
	structural bool
	want       string
}

var rejectedInGeneral = []rejection{
	// The document.
	{"an empty file", "", false, `levee.yaml:1:1: is empty; begin with version: 1`},
	{"only comments", "# nothing\n\n# here\n", false, `levee.yaml:1:1: is empty; begin with version: 1`},
	{"an empty document", "---\n...\n", false, `levee.yaml:1:1: is empty; begin with version: 1`},
	{"a list", "- version: 1\n", true, `levee.yaml:1:1: must be a mapping with version, admin, drain, upgrade, telemetry, redis, limits, overload, listeners and upstreams, not a list`},
	{"a word", "levee\n", true, `levee.yaml:1:1: must be a mapping with version, admin, drain, upgrade, telemetry, redis, limits, overload, listeners and upstreams, not "levee"`},
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
	{"a key of no meaning", frame(loopback + "\ntimeouts: {connect: 5s}"), true, `levee.yaml:5:14: listeners[0].timeouts: unknown key "connect"; the keys here are arrival, proxy_header, sniff, idle, half_closed, write_stall, message and lifetime`},
	{"a key that would hide plaintext", frame("listen: [\":80\"]\ninsecured: true"), true, `levee.yaml:5:3: listeners[0]: unknown key "insecured"; did you mean "insecure"?`},
	{"a key that attacks the terminal", frame(loopback + "\n\"\\e[31m\": 1"), true, `levee.yaml:5:3: listeners[0]: unknown key "\x1b[31m"; the keys here are name, listen, insecure, proxy_protocol, tls, starttls, limits, timeouts and routes`},
	{"a very long key", frame(loopback + "\n" + strings.Repeat("k", 500) + ": 1"), true, `levee.yaml:5:3: listeners[0]: unknown key "` + strings.Repeat("k", 60) + `..."; the keys here are name, listen, insecure, proxy_protocol, tls, starttls, limits, timeouts and routes`},
	{"a key twice", frame(loopback + "\ninsecure: true\ninsecure: false"), false, `levee.yaml:6:3: listeners[0].insecure: is given twice; the first is on line 5`},
	{"a key without a value", frame(loopback + "\ntls:"), true, `levee.yaml:5:7: listeners[0].tls: has no value; remove the key, or give it a mapping with mode, certificates, development, acme, alpn, client_ca, client_crl, client_optional, client_allow and tickets`},
	{
		"missing keys", "version: 1\nlisteners:\n- {}\n", true,
		`levee.yaml:3:3: listeners[0].name: is missing; it takes a name such as public
levee.yaml:3:3: listeners[0].listen: is missing; it takes a list of addresses such as 127.0.0.1:8080
levee.yaml:3:3: listeners[0].routes: is missing; it takes a list of routes such as {handler: echo} or {upstream: postgres}`,
	},
	{
		"a missing name beside an open door", "version: 1\nlisteners:\n- listen: [\":80\"]\n  routes: [{handler: echo}]\n", true,
		`levee.yaml:3:3: listeners[0].name: is missing; it takes a name such as public
levee.yaml:3:12: listeners[0].listen[0]: ":80" can be reached from other machines and tls.mode off lets plaintext in; set tls.mode: terminate, or insecure: true if that is meant`,
	},
	{
		"nothing but an unknown key", "backends: []\n", true,
		`levee.yaml:1:1: unknown key "backends"; the keys here are version, admin, drain, upgrade, telemetry, redis, limits, overload, listeners and upstreams
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
	{"a list for a mapping", frame(loopback + "\ntls: []"), true, `levee.yaml:5:8: listeners[0].tls: must be a mapping with mode, certificates, development, acme, alpn, client_ca, client_crl, client_optional, client_allow and tickets, not a list`},
	{"a mapping for a list", frame("listen: {}"), true, `levee.yaml:4:11: listeners[0].listen: must be a list of addresses such as 127.0.0.1:8080, not a mapping`},
	{"an address for a list", frame("listen: 127.0.0.1:80"), true, `levee.yaml:4:11: listeners[0].listen: must be a list; write ["127.0.0.1:80"]`},
	{"a port for a list", frame("listen: 8080"), true, `levee.yaml:4:11: listeners[0].listen: must be a list of addresses such as 127.0.0.1:8080, not 8080`},
	{"a port for an address", frame("listen: [8080]"), true, `levee.yaml:4:12: listeners[0].listen[0]: must be an address such as 127.0.0.1:8080, not 8080`},
	{"an empty list", frame("listen: []"), true, `levee.yaml:4:11: listeners[0].listen: is empty; it takes a list of addresses such as 127.0.0.1:8080`},
	{"no listeners", "version: 1\nlisteners: []\n", true, `levee.yaml:2:12: listeners: is empty; it takes a list of listeners, each with name, listen and routes`},
	{"lists for single values", frame("listen: [[\"127.0.0.1:80\"]]\ntls: {mode: [off]}\ntimeouts: {idle: [5m]}"), true, `levee.yaml:4:12: listeners[0].listen[0]: must be an address such as 127.0.0.1:8080, not a list
levee.yaml:5:15: listeners[0].tls.mode: must be off, terminate, optional or passthrough, not a list
levee.yaml:6:20: listeners[0].timeouts.idle: must be a duration such as 10s, or off, not a list`},
	{"a list for a drain", "drain: {timeout: []}\n" + frame(loopback), true, `levee.yaml:1:18: drain.timeout: must be a duration such as 10s, not a list`},
	{"a number for a name", strings.Replace(frame(loopback), "main", "42", 1), true, `levee.yaml:3:9: listeners[0].name: must be text; put it in quotes: "42"`},
	{"a name in capitals", strings.Replace(frame(loopback), "main", "Main", 1), true, `levee.yaml:3:9: listeners[0].name: "Main" is not a name; use up to 63 of a-z, 0-9, _ and -, and begin with a letter or digit`},

	// Words.
	{"a misspelt word", frame(loopback + "\ntls: {mode: trminate}"), true, `levee.yaml:5:15: listeners[0].tls.mode: unknown mode "trminate"; did you mean "terminate"?`},
	{"a word of no meaning", frame(loopback + "\ntls: {mode: verbatim}"), true, `levee.yaml:5:15: listeners[0].tls.mode: unknown mode "verbatim"; it takes off, terminate, optional or passthrough`},
	{"false for off", frame(loopback + "\ntls: {mode: false}"), true, `levee.yaml:5:15: listeners[0].tls.mode: must be off, terminate, optional or passthrough, not false`},
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
	{"a probation that ends before it begins", "upgrade: {settle: 3s, probation: 1s}\n" + frame(loopback), false, `levee.yaml:1:10: upgrade.probation: 1s is less than settle (3s): connections move only to a process that accepts already`},
	{"an upgrade that takes for ever", "upgrade: {timeout: 1h, settle: -1s}\n" + frame(loopback), true, `levee.yaml:1:20: upgrade.timeout: "1h" is too long; the most is 1m
levee.yaml:1:32: upgrade.settle: must not be negative`},
	{"a drain that is spread too far", "drain:\n  timeout: 10s\n  spread: 6s\n" + frame(loopback), false, `levee.yaml:2:3: drain: spread (6s) is more than half of timeout (10s), and who is asked late has to leave as well; change one of them`},
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
	{"an admin that others reach", "admin: {listen: \":9180\"}\n" + frame(loopback), false, `levee.yaml:1:17: admin.listen: ":9180" can be reached from other machines; use a loopback address such as 127.0.0.1:9180, or unix:/run/levee/admin.sock, or say who may come in: by admin.token_file, or by admin.tls.client_ca`},
	{"an admin in TLS that lets everybody in", "admin: {listen: \":9180\", tls: {cert: a.pem, key: b.pem}}\n" + frame(loopback), false, `levee.yaml:1:17: admin.listen: ":9180" can be reached from other machines; use a loopback address such as 127.0.0.1:9180, or unix:/run/levee/admin.sock, or say who may come in: by admin.token_file, or by admin.tls.client_ca`},
	{"an admin that others hear the token of", "admin: {listen: \":9180\", token_file: token}\n" + frame(loopback), false, `levee.yaml:1:17: admin.listen: ":9180" can be reached from other machines, and the token would be sent there in plaintext; add admin.tls, or say insecure: true if nobody listens on the way`},
	{"an admin with half a certificate", "admin: {listen: \":9180\", tls: {cert: a.pem, client_ca: c.pem}}\n" + frame(loopback), true, `levee.yaml:1:31: admin.tls.key: is missing; it takes the path of a PEM file`},
	{"an admin with names that are none", "admin: {hosts: [127.0.0.1, Localhost, \"a.example:80\", \"\"]}\n" + frame(loopback), false, `levee.yaml:1:17: admin.hosts[0]: "127.0.0.1": addresses and localhost are taken in any case; remove it
levee.yaml:1:28: admin.hosts[1]: "Localhost": addresses and localhost are taken in any case; remove it
levee.yaml:1:39: admin.hosts[2]: "a.example:80" is not a name; write one such as levee.example.com, without a port
levee.yaml:1:55: admin.hosts[3]: is empty; it takes a name such as levee.example.com`},
	{"an admin with a key misspelt", "admin: {listen: \":9180\", token-file: token}\n" + frame(loopback), true, `levee.yaml:1:26: admin: unknown key "token-file"; did you mean "token_file"?`},
	{"a token in no file", "admin: {token_file: \"\"}\n" + frame(loopback), false, `levee.yaml:1:21: admin.token_file: is empty; it takes the path of a file with a token`},
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
	{"no default route", routes("{match: {protocol: http}, handler: hello}"), false, `levee.yaml:5:19: listeners[0].routes[0]: has a match, and no route follows for the connections it leaves; add one without match, such as {refuse: true}`},
	{"a route behind the default", routes("{handler: echo}, {match: {protocol: http}, handler: hello}"), false, `levee.yaml:5:36: listeners[0].routes[1]: is never reached: routes[0] has no match and takes every connection; move that one to the end`},
	{"a route twice", routes("{match: {protocol: http}, handler: hello}, {match: {protocol: http}, handler: echo}, {handler: echo}"), false, `levee.yaml:5:62: listeners[0].routes[1]: is never reached: routes[0] takes the same connections`},
	{"a match of nothing", routes("{match: {}, handler: hello}"), true, `levee.yaml:5:27: listeners[0].routes[0].match: is empty; remove it, or give it sni, sni_regexp, alpn, protocol, prefix, source, local_port and client`},
	{"a match of what there is not", routes("{match: {path: [a]}, handler: hello}, {handler: echo}"), true, `levee.yaml:5:28: listeners[0].routes[0].match: unknown key "path"; the keys here are sni, sni_regexp, alpn, protocol, prefix, source, local_port and client`},
	{"no routes", routes(""), true, `levee.yaml:5:18: listeners[0].routes: is empty; it takes a list of routes such as {handler: echo} or {upstream: postgres}`},
	{"a route to nobody", routes("{match: {protocol: tls}}, {handler: ecko}"), true, `levee.yaml:5:19: listeners[0].routes[0]: leads nowhere; add a handler such as echo, the name of an upstream, or refuse: true
levee.yaml:5:55: listeners[0].routes[1].handler: unknown handler "ecko"; did you mean "echo"?`},

	// The servers of an upstream.
	{"an upstream of nothing", front("db", ""), true, `levee.yaml:7:3: upstreams[0].servers: is missing; it takes a list of servers such as 10.0.0.7:5432`},
	{"an upstream without servers", front("db", "servers: []"), true, `levee.yaml:8:12: upstreams[0].servers: is empty; it takes a list of servers such as 10.0.0.7:5432`},
	{"an upstream of one server", front("db", "servers: 10.0.0.7:5432"), true, `levee.yaml:8:12: upstreams[0].servers: must be a list; write ["10.0.0.7:5432"]`},
	{"servers without a host", front("db", `servers: [":5432", "0.0.0.0:5432", "[::]:5432"]`), true, `levee.yaml:8:13: upstreams[0].servers[0]: ":5432" has no host to connect to; for this machine write 127.0.0.1:5432
levee.yaml:8:22: upstreams[0].servers[1]: "0.0.0.0:5432" has no host to connect to; for this machine write 127.0.0.1:5432
levee.yaml:8:38: upstreams[0].servers[2]: "[::]:5432" has no host to connect to; for this machine write 127.0.0.1:5432`},
	{"servers without a port", front("db", `servers: [10.0.0.7, db.example.com, 5432, "", "10.0.0.7:0", "10.0.0.7:65536"]`), true, `levee.yaml:8:13: upstreams[0].servers[0]: "10.0.0.7" has no port; write 10.0.0.7:8080
levee.yaml:8:23: upstreams[0].servers[1]: "db.example.com" has no port; write db.example.com:8080
levee.yaml:8:39: upstreams[0].servers[2]: must be an address such as 10.0.0.7:5432, not 5432
levee.yaml:8:45: upstreams[0].servers[3]: is empty; write an address such as 127.0.0.1:8080
levee.yaml:8:49: upstreams[0].servers[4]: "10.0.0.7:0": nobody listens on port 0; write the server's, from 1 to 65535
levee.yaml:8:63: upstreams[0].servers[5]: "10.0.0.7:65536": port "65536" is not a number from 0 to 65535`},
	{"servers that are none", front("db", `servers: [[a], null, 300.1.2.3:80, "a b:80"]`), true, `levee.yaml:8:13: upstreams[0].servers[0]: must be an address such as 10.0.0.7:5432, not a list
levee.yaml:8:18: upstreams[0].servers[1]: has no value; remove the key, or give it an address such as 10.0.0.7:5432
levee.yaml:8:24: upstreams[0].servers[2]: "300.1.2.3:80": "300.1.2.3" is neither an IP address nor a host name
levee.yaml:8:38: upstreams[0].servers[3]: "a b:80": "a b" is neither an IP address nor a host name`},
	{"unix sockets that are none", front("db", `servers: ["unix:run/a", "unix:/", "unix:/a\0", "unix:///run/a"]`), true, `levee.yaml:8:13: upstreams[0].servers[0]: "unix:run/a": the path of a unix socket must be absolute, such as unix:/run/levee/admin.sock
levee.yaml:8:27: upstreams[0].servers[1]: "unix:/" names a folder, not a socket
levee.yaml:8:37: upstreams[0].servers[2]: "/a\x00" has a control character in it
levee.yaml:8:50: upstreams[0].servers[3]: "unix:///run/a" is not a URL; write "unix:/run/a"`},
	{"discovery that this build lacks", front("db", `servers: ["kubernetes://default/db:5432", "consul://db"]`), true, `levee.yaml:8:13: upstreams[0].servers[0]: "kubernetes://default/db:5432": this build has no discovery by kubernetes; the Go module upstream/kubernetes has it, for a program of your own
levee.yaml:8:45: upstreams[0].servers[1]: "consul://db": this build has no discovery by consul; the Go module upstream/consul has it, for a program of your own`},
	{"schemes of no meaning", front("db", `servers: ["tcp://10.0.0.7:5432", "dsn://db:5432", "dns+svr://a", "DNS://db:5432", "://"]`), true, `levee.yaml:8:13: upstreams[0].servers[0]: "tcp://10.0.0.7:5432": unknown scheme "tcp"; write host:port without one, or dns://, dns+srv:// or file://
levee.yaml:8:36: upstreams[0].servers[1]: "dsn://db:5432": unknown scheme "dsn"; did you mean "dns"?
levee.yaml:8:53: upstreams[0].servers[2]: "dns+svr://a": unknown scheme "dns+svr"; did you mean "dns+srv"?
levee.yaml:8:68: upstreams[0].servers[3]: "DNS://db:5432": unknown scheme "DNS"; did you mean "dns"?
levee.yaml:8:85: upstreams[0].servers[4]: "://": unknown scheme ""; write host:port without one, or dns://, dns+srv:// or file://`},
	{"names to look up that are none", front("db", `servers: ["dns://db", "dns://:5432", "dns://10.0.0.7:5432", "dns://db:0", "dns+srv://", "dns+srv://db:80", "dns+srv://10.0.0.7"]`), true, `levee.yaml:8:13: upstreams[0].servers[0]: "dns://db": "db" has no port; write db:8080
levee.yaml:8:25: upstreams[0].servers[1]: "dns://:5432": ":5432" has no host to connect to; for this machine write 127.0.0.1:5432
levee.yaml:8:40: upstreams[0].servers[2]: "dns://10.0.0.7:5432": there is nothing to look up; write 10.0.0.7:5432
levee.yaml:8:63: upstreams[0].servers[3]: "dns://db:0": "db:0": nobody listens on port 0; write the server's, from 1 to 65535
levee.yaml:8:77: upstreams[0].servers[4]: "dns+srv://": "" is not the name of SRV records; write one such as dns+srv://_postgresql._tcp.example.com, without a port
levee.yaml:8:91: upstreams[0].servers[5]: "dns+srv://db:80": "db:80" is not the name of SRV records; write one such as dns+srv://_postgresql._tcp.example.com, without a port
levee.yaml:8:110: upstreams[0].servers[6]: "dns+srv://10.0.0.7": an address has no SRV records; write a name such as _postgresql._tcp.example.com`},
	{"lists of servers that are none", front("db", `servers: ["file://servers", "file:///etc/", "file:///a\a"]`), true, `levee.yaml:8:13: upstreams[0].servers[0]: "file://servers": the path of a list of servers must be absolute, such as file:///etc/levee/servers
levee.yaml:8:31: upstreams[0].servers[1]: "file:///etc/" names a folder, not a list of servers
levee.yaml:8:47: upstreams[0].servers[2]: "/a\a" has a control character in it`},
	{"servers as mappings", front("db", `servers: [{}, {address: "a:1", weigth: 2}, {address: "b:1", weight: 0}, {address: "c:1", weight: 257, tier: 10}, {address: "d:1", name: "a b"}, {address: "e:1", name: 7}]`), true, `levee.yaml:8:13: upstreams[0].servers[0].address: is missing; it takes an address such as 10.0.0.7:5432
levee.yaml:8:34: upstreams[0].servers[1]: unknown key "weigth"; did you mean "weight"?
levee.yaml:8:71: upstreams[0].servers[2].weight: must be a whole number from 1 to 256, not 0
levee.yaml:8:100: upstreams[0].servers[3].weight: must be a whole number from 1 to 256, not 257
levee.yaml:8:111: upstreams[0].servers[3].tier: must be a whole number from 0 to 9, not 10
levee.yaml:8:139: upstreams[0].servers[4].name: "a b" is not a server's name; use letters, digits, and . _ : -
levee.yaml:8:170: upstreams[0].servers[5].name: must be text; put it in quotes: "7"`},
	{"one server's settings for several", front("db", `servers: [{address: "dns://db:1", weight: 2}, {address: "file:///s", tier: 1}, {address: "dns+srv://db", name: db}]`), false, `levee.yaml:8:13: upstreams[0].servers[0]: "dns://db:1" may be several servers, and a name, a weight or a tier is one server's; keep only the address
levee.yaml:8:49: upstreams[0].servers[1]: "file:///s" may be several servers, and a name, a weight or a tier is one server's; keep only the address
levee.yaml:8:82: upstreams[0].servers[2]: "dns+srv://db" may be several servers, and a name, a weight or a tier is one server's; keep only the address`},
	{"a server twice", front("db", `servers: [10.0.0.7:1, "[::ffff:10.0.0.7]:01", DB.example.com:1, "db.example.com.:1", "unix:/a", "unix:/a", "unix:/A"]`), false, `levee.yaml:8:25: upstreams[0].servers[1]: "10.0.0.7:1" is servers[0] already; write each server once, and its share as its weight
levee.yaml:8:67: upstreams[0].servers[3]: "db.example.com.:1" is servers[2] already; write each server once, and its share as its weight
levee.yaml:8:99: upstreams[0].servers[5]: "unix:/a" is servers[4] already; write each server once, and its share as its weight`},
	{"a server's name twice", front("db", `servers: [10.0.0.7:1, {address: "a:1", name: b}, {address: "c:1", name: B}, {address: "d:1", name: 10.0.0.7:1}, {address: "e:1", name: "e:1"}]`), false, `levee.yaml:8:52: upstreams[0].servers[2].name: "B" is what servers[1] is called already; names are unique
levee.yaml:8:79: upstreams[0].servers[3].name: "10.0.0.7:1" is what servers[0] is called already; names are unique`},
	{"a proxy to itself", strings.Replace(front("db", `servers: [127.0.0.1:80, localhost:81, 127.0.0.9:82, "[::1]:83", "dns://localhost:83", db.example.com:84, 127.0.0.1:9180]`),
		`["127.0.0.1:8080"]`, `["127.0.0.1:80", "127.0.0.1:81", ":82", "[::1]:83", "DB.example.com:84"]`+"\n  insecure: true", 1), false, `levee.yaml:9:13: upstreams[0].servers[0]: "127.0.0.1:80" is where levee itself listens (listeners[0].listen[0]); write the address of a server behind it
levee.yaml:9:27: upstreams[0].servers[1]: "localhost:81" is where levee itself listens (listeners[0].listen[1]); write the address of a server behind it
levee.yaml:9:41: upstreams[0].servers[2]: "127.0.0.9:82" is where levee itself listens (listeners[0].listen[2]); write the address of a server behind it
levee.yaml:9:55: upstreams[0].servers[3]: "[::1]:83" is where levee itself listens (listeners[0].listen[3]); write the address of a server behind it
levee.yaml:9:67: upstreams[0].servers[4]: "dns://localhost:83" is where levee itself listens (listeners[0].listen[3]); write the address of a server behind it
levee.yaml:9:89: upstreams[0].servers[5]: "db.example.com:84" is where levee itself listens (listeners[0].listen[4]); write the address of a server behind it
levee.yaml:9:108: upstreams[0].servers[6]: "127.0.0.1:9180" is where levee itself listens (admin.listen); write the address of a server behind it`},

	// Upstreams and the routes to them.
	{"an upstream twice", front("db", "servers: [a:1]") + "- name: db\n  servers: [b:1]\n", false, `levee.yaml:9:3: upstreams[1].name: "db" is the name of upstreams[0] already; names are unique`},
	{"an upstream that no route leads to", front("db", "servers: [a:1]") + "- name: other\n  servers: [b:1]\n", false, `levee.yaml:9:3: upstreams[1]: no route leads to "other"; remove it, or add a route such as {upstream: other}`},
	{"a route to an upstream misspelt", strings.Replace(front("postgres", "servers: [a:1]"), "postgres", "postgers", 1), false, `levee.yaml:5:12: listeners[0].routes[0].upstream: there is no upstream "postgers"; did you mean "postgres"?`},
	{"traces in plaintext with an authority", "telemetry: {traces: {otlp: \"http://127.0.0.1:4318\", ca: a.pem}}\n" + frame(loopback), false, `levee.yaml:1:21: telemetry.traces: has ca, yet otlp is in plaintext; write https:// or grpcs://, or remove ca`},
	{"traces that go nowhere", "telemetry: {traces: {headers: {a: b}}}\n" + frame(loopback), false, `levee.yaml:1:21: telemetry.traces: has headers, yet no otlp that it is for; add otlp: http://127.0.0.1:4318, or remove it`},
	{"a scheme for traces", "telemetry: {traces: {otlp: \"tcp://127.0.0.1:4318\"}}\n" + frame(loopback), true, `levee.yaml:1:28: telemetry.traces.otlp: "tcp://127.0.0.1:4318" does not begin with http://, https://, grpc:// or grpcs://; write a URL such as http://127.0.0.1:4318`},
	{"a receiver of traces without a port", "telemetry: {traces: {otlp: \"grpc://otel\"}}\n" + frame(loopback), false, `levee.yaml:1:28: telemetry.traces.otlp: "grpc://otel" has no host and port; write a URL such as grpc://127.0.0.1:4317`},
	{"a path over gRPC", "telemetry: {traces: {otlp: \"grpc://otel:4317/v1\"}}\n" + frame(loopback), false, `levee.yaml:1:28: telemetry.traces.otlp: "grpc://otel:4317/v1" has a path, and gRPC knows none; remove it`},
	{"a query to a receiver of traces", "telemetry: {traces: {otlp: \"http://otel:4318/?a=b\"}}\n" + frame(loopback), false, `levee.yaml:1:28: telemetry.traces.otlp: "http://otel:4318/?a=b" has more than a path; remove that`},
	{"a password in a URL, which no message repeats", "telemetry: {traces: {otlp: \"http://user:hidden@otel:4318\"}}\n" + frame(loopback), false, `levee.yaml:1:28: telemetry.traces.otlp: has a user or a password in it; put those into headers`},
	{"no URL, which no message repeats", "telemetry: {traces: {otlp: \"http://user:hidden@otel:43 18\"}}\n" + frame(loopback), false, `levee.yaml:1:28: telemetry.traces.otlp: is not a URL; write one such as http://127.0.0.1:4318`},
	{"headers that no message repeats", "telemetry: {traces: {otlp: \"http://otel:4318\", headers: {a: 123456, B: \"hid\\nden\", b: x, \"c d\": x, e: , f: [1]}}}\n" + frame(loopback), true, `levee.yaml:1:61: telemetry.traces.headers.a: must be text; put it in quotes
levee.yaml:1:72: telemetry.traces.headers.B: must be printable ASCII, without spaces at its ends
levee.yaml:1:84: telemetry.traces.headers.b: is given twice
levee.yaml:1:90: telemetry.traces.headers: "c d" is not the name of a header
levee.yaml:1:103: telemetry.traces.headers.e: has no value; remove the key, or give it text
levee.yaml:1:108: telemetry.traces.headers.f: must be text, not a list`},
	{"headers that are a secret's text", "telemetry: {traces: {otlp: \"http://otel:4318\", headers: hidden}}\n" + frame(loopback), true, `levee.yaml:1:57: telemetry.traces.headers: must be a mapping of headers, such as api-key: secret`},
	{"a share of traces", "telemetry: {traces: {otlp: \"http://otel:4318\", ratio: 1.5, resource: {a b: c}}}\n" + frame(loopback), true, `levee.yaml:1:55: telemetry.traces.ratio: must be a number from 0 to 1, not 1.5
levee.yaml:1:71: telemetry.traces.resource: "a b" is not the name of an attribute; use letters, digits and . _ / -`},
	{"a traceparent without a header", behind("send_traceparent: true\nsend_proxy: v1"), false, `levee.yaml:7:3: upstreams[0]: has send_traceparent: true, which goes into a PROXY header of version 2; set send_proxy: v2, or remove it`},
	{"a route to an unknown upstream", strings.Replace(front("postgres", "servers: [a:1]"), "postgres", "redis", 1), false, `levee.yaml:5:12: listeners[0].routes[0].upstream: there is no upstream "redis"; add it to upstreams, or name one of those`},
	{"a route to an upstream where there are none", routes("{upstream: redis}"), false, `levee.yaml:5:19: listeners[0].routes[0].upstream: there is no upstream "redis"; add it to upstreams, or name one of those`},
	{"a route to no name", routes(`{upstream: ""}`), true, `levee.yaml:5:30: listeners[0].routes[0].upstream: "" is not a name; use up to 63 of a-z, 0-9, _ and -, and begin with a letter or digit`},
	{"a route to an upstream and a handler", strings.Replace(front("db", "servers: [a:1]"), "upstream: db", "upstream: db, handler: echo", 1), false, `levee.yaml:5:12: listeners[0].routes[0]: has both a handler and an upstream; keep one of them`},
	{"a route to an upstream, but misspelt", strings.Replace(front("db", "servers: [a:1]"), "upstream", "upstrem", 1), true, `levee.yaml:5:13: listeners[0].routes[0]: unknown key "upstrem"; did you mean "upstream"?`},
	{"routes to an upstream, but misspelt", strings.Replace(front("db", "servers: [a:1]"), "routes", "rotues", 1), true, `levee.yaml:5:3: listeners[0]: unknown key "rotues"; did you mean "routes"?`},
	{"upstreams, but misspelt", strings.Replace(front("db", "servers: [a:1]"), "upstreams", "upsteams", 1), true, `levee.yaml:6:1: unknown key "upsteams"; did you mean "upstreams"?`},
	{"an upstream in capitals", strings.Replace(front("db", "servers: [a:1]"), "name: db", "name: Db", 1), true, `levee.yaml:7:9: upstreams[0].name: "Db" is not a name; use up to 63 of a-z, 0-9, _ and -, and begin with a letter or digit`},

	// The settings of an upstream.
	{"words of an upstream", behind("balance: roundrobin\ntls: {mode: terminate}\nsend_proxy: v3\nhealth: {probe: pgsql}\nbreaker: {mode: true}"), true, `levee.yaml:9:12: upstreams[0].balance: unknown balance "roundrobin"; did you mean "round_robin"?
levee.yaml:10:15: upstreams[0].tls.mode: unknown mode "terminate"; it takes off or on
levee.yaml:11:15: upstreams[0].send_proxy: unknown send_proxy "v3"; did you mean "v1"?
levee.yaml:12:19: upstreams[0].health.probe: unknown probe "pgsql"; it takes connect, send_expect, postgres, mysql, redis or http
levee.yaml:13:19: upstreams[0].breaker.mode: must be on or off, not true`},
	{"counts of an upstream", behind("breaker: {failures: 0, volume: 1.5, probes: off}\ndial: {tries: 0}\nqueue: {length: 0}\nmax_connections: off"), true, `levee.yaml:9:23: upstreams[0].breaker.failures: must be a whole number from 1 to 1000000, or off, not 0
levee.yaml:9:34: upstreams[0].breaker.volume: must be a whole number from 1 to 1000000, not 1.5
levee.yaml:9:47: upstreams[0].breaker.probes: must be a whole number from 1 to 1000, not "off"
levee.yaml:10:17: upstreams[0].dial.tries: must be a whole number from 1 to 100, not 0
levee.yaml:11:19: upstreams[0].queue.length: must be a whole number from 1 to 1000000, or off, not 0
levee.yaml:12:20: upstreams[0].max_connections: must be a whole number from 0 to 10000000, not "off"`},
	{"shares and rates", behind("breaker: {rate: 0}\npanic_threshold: 1.01\nrebalance: -1\non_down: {rate: 0.0}\ndial: {retry_budget: [1]}"), true, `levee.yaml:9:19: upstreams[0].breaker.rate: must be a number above 0, up to 1, or off, not 0
levee.yaml:10:20: upstreams[0].panic_threshold: must be a number above 0, up to 1, or off, not 1.01
levee.yaml:11:14: upstreams[0].rebalance: must be a number from 0 to 1000000, not -1
levee.yaml:12:19: upstreams[0].on_down.rate: must be a number above 0, up to 1000000, not 0.0
levee.yaml:13:24: upstreams[0].dial.retry_budget: must be a number above 0, up to 1, or off, not a list`},
	{"numbers that other readers of YAML read otherwise", behind("breaker: {rate: .5}\npanic_threshold: 1e-1\nrebalance: 1_000\ndial: {retry_budget: 0x1}\non_down: {rate: \"1\"}"), true, `levee.yaml:9:19: upstreams[0].breaker.rate: must be a number above 0, up to 1, or off, not .5
levee.yaml:10:20: upstreams[0].panic_threshold: must be a number above 0, up to 1, or off, not 1e-1
levee.yaml:11:14: upstreams[0].rebalance: must be a number from 0 to 1000000, not 1_000
levee.yaml:12:24: upstreams[0].dial.retry_budget: must be a number above 0, up to 1, or off, not 0x1
levee.yaml:13:19: upstreams[0].on_down.rate: must be a number above 0, up to 1000000, not "1"`},
	{"durations of an upstream", behind("slow_start: 0\ndial: {timeout: off, total_timeout: 0s}\nhealth: {timeout: off, interval: 0}\nqueue: {timeout: off}\ntls: {handshake_timeout: 0}"), true, `levee.yaml:9:15: upstreams[0].slow_start: must not be 0; say off to disable it
levee.yaml:10:19: upstreams[0].dial.timeout: "off" is not a duration; write one such as 250ms, 10s, 1m30s or 24h
levee.yaml:10:39: upstreams[0].dial.total_timeout: must be more than 0
levee.yaml:11:21: upstreams[0].health.timeout: "off" is not a duration; write one such as 250ms, 10s, 1m30s or 24h
levee.yaml:11:36: upstreams[0].health.interval: must not be 0; say off to disable it
levee.yaml:12:20: upstreams[0].queue.timeout: "off" is not a duration; write one such as 250ms, 10s, 1m30s or 24h
levee.yaml:13:28: upstreams[0].tls.handshake_timeout: must be more than 0`},
	{"durations in each other's way", behind("health: {interval: 500ms}\ndial: {timeout: 20s}\nbreaker: {open: 2m}"), false, `levee.yaml:10:9: upstreams[0].dial: timeout (20s), for one try, is longer than total_timeout (10s), for all; change one of them
levee.yaml:11:12: upstreams[0].breaker: open (2m) is longer than max_open (1m); change one of them`},
	{"a hurry slower than usual", behind("health: {fast_interval: 10s}"), false, `levee.yaml:9:11: upstreams[0].health: fast_interval (10s) is longer than interval (5s); change one of them`},
	{"sources that are none", behind(`dial: {source: [10.0.0.1:80, lo, 0.0.0.0, "::", 224.0.0.1, 7, "fe80::1%a b"]}`), true, `levee.yaml:9:19: upstreams[0].dial.source[0]: "10.0.0.1:80" is not an IP address; write one such as 10.0.0.1, without a port
levee.yaml:9:32: upstreams[0].dial.source[1]: "lo" is not an IP address; write one such as 10.0.0.1, without a port
levee.yaml:9:36: upstreams[0].dial.source[2]: "0.0.0.0" is no address of its own; leave source out, and the system picks one
levee.yaml:9:45: upstreams[0].dial.source[3]: "::" is no address of its own; leave source out, and the system picks one
levee.yaml:9:51: upstreams[0].dial.source[4]: "224.0.0.1" is a multicast address, which nothing can connect from
levee.yaml:9:62: upstreams[0].dial.source[5]: must be an address such as 10.0.0.1, not 7
levee.yaml:9:65: upstreams[0].dial.source[6]: "fe80::1%a b" is not an IP address; write one such as 10.0.0.1, without a port`},
	{"early for hours", behind("early_close: 61s"), false, `levee.yaml:9:16: upstreams[0].early_close: "61s" is too long; the most is 1m; say off to disable it`},
	{"TLS that is off", behind("tls: {ca: a.pem}"), false, `levee.yaml:9:8: upstreams[0].tls: mode is off, yet there is ca; set mode: on, or remove it`},
	{"TLS that is off, unverified", behind("tls: {mode: off, skip_verify: true}"), false, `levee.yaml:9:8: upstreams[0].tls: mode is off, yet there is skip_verify: true; set mode: on, or remove it`},
	{"a certificate without a key for servers", behind("tls: {mode: on, certificate: a.pem}"), false, `levee.yaml:9:8: upstreams[0].tls: has a certificate without its key; add key: a-key.pem`},
	{"a key without a certificate for servers", behind("tls: {mode: on, key: a-key.pem}"), false, `levee.yaml:9:8: upstreams[0].tls: has a key without its certificate; add certificate: a.pem`},
	{"an authority that nobody asks", behind("tls: {mode: on, ca: a.pem, skip_verify: true}"), false, `levee.yaml:9:8: upstreams[0].tls: has both ca and skip_verify: true, which believes everybody; keep one of them`},
	{"TLS to no name", behind(`tls: {mode: on, ca: "", server_name: "a b"}`), true, `levee.yaml:9:23: upstreams[0].tls.ca: is empty; it takes the path of a PEM file
levee.yaml:9:40: upstreams[0].tls.server_name: "a b" is neither an IP address nor a host name`},
	{"TLS to a socket", front("db", `servers: ["unix:/a", {address: "unix:/b", name: b.example.com}]
tls: {mode: on}`), false, `levee.yaml:8:13: upstreams[0].servers[0]: a unix socket has no host that a certificate could be for; set tls.server_name`},
	{"TLS to whom DNS names", front("db", `servers: ["dns+srv://_db._tcp.example.com", "dns://db.example.com:5432"]
tls: {mode: on}`), false, `levee.yaml:8:13: upstreams[0].servers[0]: DNS would choose the names that the certificates must be for; set tls.server_name`},
	{"settings of other probes", behind("health: {send: x, user: u, database: d, password: p, path: /, host: h}"), false, `levee.yaml:9:11: upstreams[0].health.user: is for probe postgres or mysql, yet probe is send_expect; change probe, or remove it
levee.yaml:9:11: upstreams[0].health.database: is for probe postgres, yet probe is send_expect; change probe, or remove it
levee.yaml:9:11: upstreams[0].health.password: is for probe redis, yet probe is send_expect; change probe, or remove it
levee.yaml:9:11: upstreams[0].health.path: is for probe http, yet probe is send_expect; change probe, or remove it
levee.yaml:9:11: upstreams[0].health.host: is for probe http, yet probe is send_expect; change probe, or remove it`},
	{"send and expect of another probe", behind("health: {probe: connect, send: x, expect: y}"), false, `levee.yaml:9:11: upstreams[0].health.send: is for probe send_expect, yet probe is connect; change probe, or remove it
levee.yaml:9:11: upstreams[0].health.expect: is for probe send_expect, yet probe is connect; change probe, or remove it`},
	{"a database for MySQL", behind("health: {probe: mysql, user: u, database: d}"), false, `levee.yaml:9:11: upstreams[0].health.database: is for probe postgres, yet probe is mysql; change probe, or remove it`},
	{"nothing to send or expect", behind("health: {probe: send_expect}"), false, `levee.yaml:9:11: upstreams[0].health: probe send_expect has neither send nor expect; add one, or set probe: connect`},
	{"a request that is none", behind(`health: {probe: http, path: healthz, host: "a b"}`), false, `levee.yaml:9:31: upstreams[0].health.path: "healthz" is not a path; write one such as /healthz or /healthz?deep=1
levee.yaml:9:46: upstreams[0].health.host: "a b" is not a host; write one such as www.example.com, with a port or without`},
	{"other requests that are none", behind(`health: {probe: http, path: "/a b", host: ":80"}`), false, `levee.yaml:9:31: upstreams[0].health.path: "/a b" is not a path; write one such as /healthz or /healthz?deep=1
levee.yaml:9:45: upstreams[0].health.host: ":80" is not a host; write one such as www.example.com, with a port or without`},
	{"texts that are none", behind(`health: {user: "a\0", expect: 220}`), true, `levee.yaml:9:18: upstreams[0].health.user: "a\x00" has a control character in it
levee.yaml:9:33: upstreams[0].health.expect: must be text; put it in quotes: "220"`},
	{"texts that are too long", behind("health: {expect: " + strings.Repeat("x", 16385) + "}"), false, `levee.yaml:9:20: upstreams[0].health.expect: has 16385 bytes; the most is 16384`},
	{"a password that no message repeats", behind("health: {probe: redis, password: 123456}"), true, `levee.yaml:9:36: upstreams[0].health.password: must be text; put it in quotes`},
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
