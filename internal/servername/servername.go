// Package servername brings the names of servers, as TLS clients ask for them and as
// configurations write them, into one form. Whoever decides by a name decides by that
// form, or a stranger could be one name to the one and another to the next.
package servername

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/idna"
)

const (
	maxName  = 253 // RFC 1035 section 2.3.4, without the root's dot
	maxLabel = 63
)

// Normalize returns the name that a client has sent (RFC 6066 section 3) in lower case
// and without a trailing dot, and "" for none. What cannot be a DNS name is an error: an
// IP address, and anything but letters, digits, hyphens and underscores in labels of up
// to 63 bytes. So is a name with non-ASCII letters, which clients send as xn-- labels.
func Normalize(sent string) (string, error) {
	if sent == "" {
		return "", nil
	}
	name := strings.TrimSuffix(sent, ".")
	if len(name) > maxName {
		return "", fmt.Errorf("server name of %d bytes: no name has more than %d", len(name), maxName)
	}
	if last := name[max(0, len(name)-1):]; "0" <= last && last <= "9" { // the colons of IPv6 are in no label; errors would allocate
		if _, err := netip.ParseAddr(name); err == nil {
			return "", fmt.Errorf("server name %s: an address is not a name", name)
		}
	}
	for label := range strings.SplitSeq(name, ".") {
		if !isLabel(label) {
			return "", fmt.Errorf("server name %.80q: not a DNS name", sent)
		}
	}
	return strings.ToLower(name), nil
}

func isLabel(label string) bool {
	if label == "" || len(label) > maxLabel {
		return false
	}
	for i := range len(label) {
		switch c := label[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_':
		case c == '-' && i > 0 && i < len(label)-1:
		default:
			return false
		}
	}
	return true
}

// A Pattern is a name, or one with * for its first label, which stands for exactly one
// label (RFC 6125 section 6.4.3).
type Pattern struct {
	name     string // in the wildcard's case, with the dot that follows it
	wildcard bool
}

// ParsePattern reads what a configuration has written, in any case, with letters of any
// script.
func ParsePattern(text string) (Pattern, error) {
	rest, wildcard := strings.CutPrefix(text, "*.")
	ascii, err := idna.Lookup.ToASCII(rest)
	if err != nil {
		ascii = rest // an underscore, which is none of idna's; the rest of what is wrong Normalize says
	}
	name, err := Normalize(ascii)
	switch {
	case err != nil:
		return Pattern{}, err
	case name == "":
		return Pattern{}, errors.New("an empty server name")
	case wildcard:
		name = "." + name
	}
	return Pattern{name, wildcard}, nil
}

// Matches reports whether name, which Normalize has returned, is one of the pattern's.
func (p Pattern) Matches(name string) bool {
	if !p.wildcard {
		return name == p.name && name != ""
	}
	first, ok := strings.CutSuffix(name, p.name)
	return ok && first != "" && !strings.Contains(first, ".")
}

// String returns the pattern in its one form.
func (p Pattern) String() string {
	if p.wildcard {
		return "*" + p.name
	}
	return p.name
}
