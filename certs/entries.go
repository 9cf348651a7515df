package certs

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/levee-net/levee/internal/servername"
)

// entries are the lists of who is let in.
type entries struct {
	dns         []servername.Pattern
	uris        []string
	folders     []string // spiffe://example.com/ for spiffe://example.com/*
	emails      []string
	commonNames []string
	spkis       [][sha256.Size]byte
}

func parseEntries(c *Clients) (e entries, err error) {
	for _, text := range c.DNS {
		pattern, err := servername.ParsePattern(text)
		if err != nil {
			return e, fmt.Errorf("DNS name %q: %w", text, err)
		}
		e.dns = append(e.dns, pattern)
	}
	for _, text := range c.URIs {
		folder, err := parseURI(text)
		switch {
		case err != nil:
			return e, fmt.Errorf("URI %q: %w", text, err)
		case folder != "":
			e.folders = append(e.folders, folder)
		default:
			e.uris = append(e.uris, text)
		}
	}
	for _, text := range c.Emails {
		email, ok := canonicalEmail(text)
		if !ok {
			return e, fmt.Errorf("email %q: not of the form name@domain", text)
		}
		e.emails = append(e.emails, email)
	}
	if slices.Contains(c.CommonNames, "") {
		return e, errors.New("an empty common name") // certificates without one would match
	}
	e.commonNames = c.CommonNames
	for _, text := range c.SPKIs {
		pin, err := parsePin(text)
		if err != nil {
			return e, fmt.Errorf("SPKI %q: %w", text, err)
		}
		e.spkis = append(e.spkis, pin)
	}
	return e, nil
}

// parseURI returns what is before the * if that is how the URI ends.
func parseURI(text string) (folder string, err error) {
	folder, wildcard := strings.CutSuffix(text, "*")
	uri, err := url.Parse(folder)
	switch {
	case err != nil:
		return "", err
	case uri.Scheme == "" || uri.Host == "" && uri.Opaque == "":
		return "", errors.New("not absolute")
	case strings.Contains(folder, "*"):
		return "", errors.New("* may only stand at the end")
	case uri.String() != folder:
		return "", fmt.Errorf("would be compared as %q", uri.String())
	case !wildcard:
		return "", nil
	case uri.Scheme != "spiffe" || !strings.HasSuffix(folder, "/"):
		return "", errors.New("* may only stand for a SPIFFE ID's path, after a slash")
	}
	return folder, nil
}

// canonicalEmail lowers the domain's case.
func canonicalEmail(text string) (string, bool) {
	at := strings.LastIndexByte(text, '@')
	if at <= 0 || at == len(text)-1 {
		return "", false
	}
	return text[:at] + strings.ToLower(text[at:]), true
}

func parsePin(text string) (pin [sha256.Size]byte, err error) {
	encoded, ok := strings.CutPrefix(text, "sha256/")
	if !ok {
		return pin, errors.New("does not begin with sha256/")
	}
	hash, err := base64.StdEncoding.Strict().DecodeString(encoded)
	switch {
	case err != nil:
		return pin, err
	case len(hash) != len(pin) || strings.ContainsAny(encoded, "\r\n"): // which the decoder skips
		return pin, fmt.Errorf("not %d bytes in base64", len(pin))
	}
	return [sha256.Size]byte(hash), nil
}

// match reports whether the certificate is on any of the lists.
func (e *entries) match(cert *x509.Certificate) bool {
	return slices.Contains(e.commonNames, cert.Subject.CommonName) ||
		slices.Contains(e.spkis, sha256.Sum256(cert.RawSubjectPublicKeyInfo)) ||
		slices.ContainsFunc(cert.DNSNames, e.matchDNS) ||
		slices.ContainsFunc(cert.URIs, func(uri *url.URL) bool { return e.matchURI(uri.String(), len(cert.URIs) == 1) }) ||
		slices.ContainsFunc(cert.EmailAddresses, func(text string) bool {
			email, ok := canonicalEmail(text)
			return ok && slices.Contains(e.emails, email)
		})
}

// matchDNS says no to names with a wildcard: a client is one, not any.
func (e *entries) matchDNS(text string) bool {
	name, err := servername.Normalize(text)
	return err == nil && slices.ContainsFunc(e.dns, func(p servername.Pattern) bool { return p.Matches(name) })
}

func (e *entries) matchURI(uri string, only bool) bool {
	if !only && strings.HasPrefix(uri, "spiffe:") {
		return false
	}
	return slices.Contains(e.uris, uri) || slices.ContainsFunc(e.folders, func(folder string) bool {
		path, ok := strings.CutPrefix(uri, folder)
		return ok && isPath(path)
	})
}

// isPath reports whether text is a path as SPIFFE IDs have it (SPIFFE-ID section 2.2).
// A path with .. in it might leave its folder in the eyes of somebody else.
func isPath(text string) bool {
	for segment := range strings.SplitSeq(text, "/") {
		if segment == "" || segment == "." || segment == ".." {
			return false
		}
		for _, c := range []byte(segment) {
			if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.') {
				return false
			}
		}
	}
	return true
}
