package config

import "testing"

// challenges is a listener for an authority that comes in plaintext.
const challenges = "- name: challenges\n  listen: [\":80\"]\n  routes: [{handler: acme}]\n"

// rejectedACME holds documents that are wrong about authorities, and about what machines share.
var rejectedACME = []rejection{
	{"terms that are not agreed to", frame(loopback + "\ntls: {acme: {domains: a.example.com, agree_to_terms: false}}"), false, `levee.yaml:5:15: listeners[0].tls.acme.agree_to_terms: must be true: read the authority's terms of service, and agree to them`},
	{"no names", frame(loopback + "\ntls: {acme: {agree_to_terms: true}}"), true, `levee.yaml:5:15: listeners[0].tls.acme.domains: is missing; it takes a list of names such as db.example.com, or a single one`},
	{"names that are none", frame(loopback + "\ntls: {acme: {domains: [\"*.example.com\", 10.0.0.1], agree_to_terms: true}}"), false, `levee.yaml:5:26: listeners[0].tls.acme.domains[0]: "*.example.com" is a wildcard, for which authorities want DNS-01: that is in the library (certs/acme) only; name the names
levee.yaml:5:43: listeners[0].tls.acme.domains[1]: "10.0.0.1" is neither a name nor a pattern such as *.example.com`},
	{"two authorities", frame(loopback + "\ntls: {acme: {domains: a.example.com, agree_to_terms: true, staging: true, directory: \"https://acme.example.com/dir\"}}"), false, `levee.yaml:5:15: listeners[0].tls.acme: has both staging and a directory; keep one of them`},
	{"a directory in plaintext", frame(loopback + "\ntls: {acme: {domains: a.example.com, agree_to_terms: true, directory: \"http://acme.example.com/dir\"}}"), false, `levee.yaml:5:73: listeners[0].tls.acme.directory: "http://acme.example.com/dir" is not the address of a directory; write https:// and a host`},
	{"an authority beside files", frame(loopback + "\ntls: {" + pair + ", acme: {domains: a.example.com, agree_to_terms: true}}"), false, `levee.yaml:5:8: listeners[0].tls: has both certificates and acme; keep one of them`},
	{"an authority beside the development CA", frame(loopback + "\ntls: {development: true, acme: {domains: a.example.com, agree_to_terms: true}}"), false, `levee.yaml:5:8: listeners[0].tls: has both acme and development: true; keep one of them`},
	{"a challenge that nobody answers", frame(loopback + "\ntls: {acme: {domains: a.example.com, agree_to_terms: true, challenges: http-01}}"), false, `levee.yaml:5:15: listeners: an acme has challenges: http-01, which nobody answers; add a listener on port 80 with routes: [{handler: acme}]`},
	{"a challenge behind a server that speaks first", frame(loopback + "\nstarttls: smtp\ntls: {acme: {domains: [a.example.com], agree_to_terms: true}}"), false, `levee.yaml:6:26: listeners[0].tls.acme: levee speaks first in the place of an smtp server, so no authority gets to show its hello for "a.example.com"; set challenges: http-01, or have the same acme on a listener without starttls`},
	{"a name of two authorities", frame(loopback+"\ntls: {acme: {domains: a.example.com, agree_to_terms: true, challenges: http-01}}") + challenges + "- name: other\n  listen: [\"127.0.0.1:8081\"]\n  tls: {acme: {domains: [b.example.com, A.example.com], agree_to_terms: true, challenges: http-01, staging: true}}\n  routes: [{handler: echo}]\n", false, `levee.yaml:12:41: listeners[2].tls.acme.domains: "A.example.com" is one of listeners[0].tls.acme by http-01 already, which has another authority or folder, and only that one would be answered for; give both the same`},
	{"an account's key that is none", frame(loopback + "\ntls: {acme: {domains: a.example.com, agree_to_terms: true, eab: {key_id: k, key: c2VjcmV0cw==}}}"), false, `levee.yaml:5:84: listeners[0].tls.acme.eab.key: is not base64url; it takes A-Z, a-z, 0-9, - and _, without = at the end`},
	{"an answer that nobody asks for", frame(loopback) + challenges, false, `levee.yaml:8:12: listeners: handler: acme answers http-01, which no acme has among its challenges; add challenges: http-01 there, or remove this`},
	{"a challenge misspelt", frame(loopback + "\ntls: {acme: {domains: a.example.com, agree_to_terms: true, challenges: [http-1]}}"), true, `levee.yaml:5:75: listeners[0].tls.acme.challenges[0]: unknown challenges "http-1"; did you mean "http-01"?`},
	{"a store that is nowhere", "redis: {password: x}\n" + frame(loopback), true, `levee.yaml:1:8: redis.address: is missing; it takes an address such as 10.0.0.5:6379, or unix:/run/redis.sock`},
	{"a store in a relative place", "redis: {address: \"unix:redis.sock\"}\n" + frame(loopback), false, `levee.yaml:1:18: redis.address: "unix:redis.sock" is not an absolute path; write unix:/run/redis.sock`},
	{"whom to believe in plaintext", "redis: {address: \"10.0.0.5:6379\", ca: ca.pem}\n" + frame(loopback), false, `levee.yaml:1:8: redis: has ca, yet tls is not true; add tls: true, or remove ca`},
}

func TestAuthoritiesAndSharedStoresReadBackAsTheyWereWritten(t *testing.T) {
	doc := "redis: {address: \"10.0.0.5:6379\", username: levee, password: p, tls: true, ca: ca.pem}\n" +
		frame(loopback+"\ntls: {acme: {domains: [a.example.com, b.example.com], agree_to_terms: true, email: ops@example.com, directory: \"https://acme.example.com/dir\", "+
			"ca: ca.pem, eab: {key_id: k, key: c2VjcmV0}, challenges: [tls-alpn-01, http-01], folder: acme}}") + challenges
	cfg := readBack(t, doc)
	if a := &cfg.Listeners[0].TLS.ACME; !a.By(ChallengeTLSALPN) || !a.By(ChallengeHTTP) || (&ACME{}).By(ChallengeHTTP) || !(&ACME{}).By(ChallengeTLSALPN) {
		t.Errorf("challenges of %+v", a)
	}
}

// An authority that comes by http-01 comes in plaintext, from anywhere.
func TestAListenerForChallengesNeedsNoLeave(t *testing.T) {
	doc := frame(loopback+"\ntls: {acme: {domains: a.example.com, agree_to_terms: true, challenges: http-01}}") + challenges
	if _, err := Parse("levee.yaml", []byte(doc)); err != nil {
		t.Error(err)
	}
}
