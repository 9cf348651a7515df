package config

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// ACME has an authority issue certificates, and renew them.
type ACME struct {
	Pos          Position
	Domains      []Word // empty is no ACME
	AgreeToTerms bool
	Email        string
	Staging      bool
	Directory    string // empty is Let's Encrypt's
	CA           string // empty is whom the system believes
	EAB          EAB
	Challenges   []Challenge
	Folder       string // empty is one beside the development CA's, or Redis
}

// EAB ties the account to one that the authority knows already.
type EAB struct {
	KeyID string
	Key   string
}

// Challenge is how the authority is shown that a name is ours.
type Challenge string

// The challenges, by their registered names.
const (
	ChallengeTLSALPN Challenge = "tls-alpn-01" // by a handshake, on port 443
	ChallengeHTTP    Challenge = "http-01"     // by a request, on port 80
)

func (a *ACME) keys() []key {
	return []key{
		{
			"domains", required,
			wordsOf(&a.Domains, "names such as db.example.com", "a name such as db.example.com", notDomain),
			"The names to have certificates for. Only for these is ever one ordered.",
		},
		{
			"agree_to_terms", required,
			boolean{&a.AgreeToTerms},
			"true: the authority's terms of service are agreed to.",
		},
		{
			"email", optional,
			text(&a.Email, "an address such as ops@example.com", 254, hasControl),
			"Where the authority may write to.",
		},
		{
			"staging", optional,
			boolean{&a.Staging},
			"Use Let's Encrypt's authority for trying things out, whose certificates nobody trusts and whose limits are generous.",
		},
		{
			"directory", optional,
			text(&a.Directory, "an address such as https://acme.example.com/directory", 2048, notDirectory),
			"The address of the authority's directory. Without it, Let's Encrypt's. Excludes staging.",
		},
		{
			"ca", optional, filePath(&a.CA),
			"Whom to believe that they are the directory: a PEM file, relative to this file's folder. Without it, whom the system believes.",
		},
		{
			"eab", optional,
			object{of: &a.EAB, filled: true},
			"For authorities that issue only to accounts that they know already.",
		},
		{
			"challenges", optional,
			some[Challenge]{list[Challenge]{p: &a.Challenges, of: "challenges: tls-alpn-01 or http-01", item: func(c *Challenge) value {
				return choice[Challenge]{p: c, options: words(ChallengeTLSALPN, ChallengeHTTP)}
			}}},
			"How a name is shown to be ours: tls-alpn-01 on the port that serves, which has to be reached by port 443; http-01 by a route with handler: acme, reached by port 80. Without it, tls-alpn-01.",
		},
		{
			"folder", optional, filePath(&a.Folder),
			"Where certificates, keys and the account are kept, relative to this file's folder. Without it, Redis if there is redis, else a folder of levee's beside the development CA.",
		},
	}
}

func (e *EAB) keys() []key {
	return []key{
		{"key_id", required, text(&e.KeyID, "the key's identifier", 1024, hasControl), "The identifier that the authority gave."},
		{"key", required, secret(&e.Key, "the key, in base64url", 1024, notBase64URL), "The key that it gave, in base64url."},
	}
}

func notDomain(s string) error {
	if strings.HasPrefix(s, "*") {
		return fmt.Errorf("%s is a wildcard, for which authorities want DNS-01: that is in the library (certs/acme) only; name the names", quote(s))
	}
	return notPattern(s)
}

// notBase64URL does not quote what is a secret.
func notBase64URL(s string) error {
	if _, err := base64.RawURLEncoding.DecodeString(s); err != nil {
		return errors.New("is not base64url; it takes A-Z, a-z, 0-9, - and _, without = at the end")
	}
	return nil
}

func notDirectory(s string) error {
	if u, err := url.Parse(s); err != nil || u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("%s is not the address of a directory; write https:// and a host", quote(s))
	}
	return nil
}

// Given reports whether there is any.
func (a *ACME) Given() bool { return len(a.Domains) > 0 }

// By reports whether names are shown to be ours by the challenge.
func (a *ACME) By(c Challenge) bool {
	if len(a.Challenges) == 0 {
		return c == ChallengeTLSALPN
	}
	return slices.Contains(a.Challenges, c)
}

func (a *ACME) check(ps *Problems, path string) {
	switch {
	case !ps.clean(path) || !a.Given():
	case !a.AgreeToTerms:
		ps.add(a.Pos, path+".agree_to_terms", "must be true: read the authority's terms of service, and agree to them")
	case a.Staging && a.Directory != "":
		ps.add(a.Pos, path, "has both staging and a directory; keep one of them")
	}
}

// Redis is what several machines share.
type Redis struct {
	Pos      Position
	Address  string // host:port, or unix: and a path; empty is none
	Username string
	Password string
	TLS      bool
	CA       string // empty is whom the system believes
}

func (r *Redis) keys() []key {
	return []key{
		{
			"address", required,
			text(&r.Address, "an address such as 10.0.0.5:6379, or unix:/run/redis.sock", 253, notRedis),
			"host:port, or unix: and an absolute path. Empty is none.",
		},
		{"username", optional, text(&r.Username, "a name", 255, hasControl), "Whom to log in as. Without it, the default user."},
		{"password", optional, secret(&r.Password, "a password", 1024, nil), "The user's password."},
		{"tls", optional, boolean{&r.TLS}, "Talk to it over TLS, its certificate verified."},
		{"ca", optional, filePath(&r.CA), "Whom to believe that they are it: a PEM file, relative to this file's folder. Without it, whom the system believes."},
	}
}

func notRedis(s string) error {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if !strings.HasPrefix(path, "/") {
			return fmt.Errorf("%s is not an absolute path; write unix:/run/redis.sock", quote(s))
		}
		return hasControl(s)
	}
	_, err := ParseAddress(s)
	return err
}

// Given reports whether there is any.
func (r *Redis) Given() bool { return r.Address != "" }

func (r *Redis) check(ps *Problems, path string) {
	if ps.clean(path) && r.CA != "" && !r.TLS {
		ps.add(r.Pos, path, "has ca, yet tls is not true; add tls: true, or remove ca")
	}
}
