package route

import (
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/gaissmai/bart"

	"github.com/levee-net/levee/internal/servername"
)

// SNI matches TLS connections by the server name that their client asks for. A pattern
// is a name, or one with * for its first label: *.example.com is a.example.com and
// neither example.com nor a.b.example.com. Case does not matter. SNI panics on what
// cannot be a pattern.
func SNI(patterns ...string) Matcher {
	parsed := make([]servername.Pattern, 0, len(patterns))
	for _, text := range patterns {
		p, err := servername.ParsePattern(text)
		if err != nil {
			panic("route.SNI: " + err.Error())
		}
		parsed = append(parsed, p)
	}
	return byName(func(name string) bool {
		return slices.ContainsFunc(parsed, func(p servername.Pattern) bool { return p.Matches(name) })
	})
}

// SNIRegexp is SNI by a regular expression (see package regexp) that the whole name has
// to match. Case does not matter. It panics if the expression does not compile.
func SNIRegexp(expression string) Matcher {
	re := regexp.MustCompile("(?i)" + expression)
	re.Longest() // or a|ab would not match all of ab
	return byName(func(name string) bool {
		at := re.FindStringIndex(name)
		return name != "" && at != nil && at[0] == 0 && at[1] == len(name)
	})
}

func byName(matches func(name string) bool) Matcher {
	return func(b *Beginning) Verdict {
		hello, v := b.Hello()
		if v != Yes {
			return v
		}
		return verdict(matches(hello.ServerName))
	}
}

func verdict(yes bool) Verdict {
	if yes {
		return Yes
	}
	return No
}

// ALPN matches TLS connections whose client offers one of the application protocols
// (RFC 7301). When TLS has been terminated with one of them agreed on, only that one
// counts: it is what the client speaks.
func ALPN(protocols ...string) Matcher {
	return func(b *Beginning) Verdict {
		hello, v := b.Hello()
		switch {
		case v != Yes:
			return v
		case b.negotiated != "":
			return verdict(slices.Contains(protocols, b.negotiated))
		}
		return verdict(slices.ContainsFunc(hello.ALPN, func(p string) bool { return slices.Contains(protocols, p) }))
	}
}

// TLS matches connections that begin with a TLS handshake, terminated or not.
func TLS(b *Beginning) Verdict {
	_, v := b.Hello()
	return v
}

// ClientCert matches connections whose client has shown a certificate for one of the
// identities, in TLS that has been terminated and by which the certificate was verified
// ([tls.VerifyClientCertIfGiven] or [tls.RequireAndVerifyClientCert]). An identity with ://
// in it is one of the certificate's URIs, as spiffe://example.com/client is; any other
// one of its DNS names, in any case, or its common name.
func ClientCert(identities ...string) Matcher {
	return func(b *Beginning) Verdict {
		switch {
		case !b.open && len(b.First) == 0, b.Sealed():
			return More
		case !b.open:
			return No
		}
		chains := b.Conn.TLS().VerifiedChains
		if len(chains) == 0 {
			return No
		}
		leaf := chains[0][0]
		return verdict(slices.ContainsFunc(identities, func(identity string) bool {
			if strings.Contains(identity, "://") {
				for _, u := range leaf.URIs {
					if u.String() == identity {
						return true
					}
				}
				return false
			}
			return identity != "" && leaf.Subject.CommonName == identity ||
				slices.ContainsFunc(leaf.DNSNames, func(name string) bool { return strings.EqualFold(name, identity) })
		}))
	}
}

// Source matches connections whose client has an address in one of the prefixes: the
// address that a PROXY header gives, where there was one. It panics on a prefix that is
// not valid. The client of a Unix socket has no address.
func Source(prefixes ...netip.Prefix) Matcher {
	table := new(bart.Lite)
	for _, p := range prefixes {
		if !p.IsValid() {
			panic("route.Source: an invalid prefix")
		}
		if p.Addr().Is4In6() && p.Bits() >= 96 { // a Conn's address is never of that form
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		table.Insert(p.Masked())
	}
	return func(b *Beginning) Verdict {
		client := b.Conn.ClientAddr().Addr().WithZone("") // no prefix contains a zone
		return verdict(client.IsValid() && table.Contains(client))
	}
}

// LocalPort matches connections that were accepted on one of the ports.
func LocalPort(ports ...uint16) Matcher {
	return func(b *Beginning) Verdict {
		local, ok := b.Conn.LocalAddr().(*net.TCPAddr)
		return verdict(ok && slices.Contains(ports, local.AddrPort().Port()))
	}
}

// All matches what all of the matchers match.
func All(matchers ...Matcher) Matcher {
	return func(b *Beginning) Verdict {
		all := Yes
		for _, m := range matchers {
			switch m(b) {
			case No:
				return No
			case More:
				all = More
			}
		}
		return all
	}
}

// Any matches what any of the matchers matches.
func Any(matchers ...Matcher) Matcher {
	return func(b *Beginning) Verdict {
		one := No
		for _, m := range matchers {
			switch m(b) {
			case Yes:
				return Yes
			case More:
				one = More
			}
		}
		return one
	}
}

// Not matches what the matcher does not match.
func Not(m Matcher) Matcher {
	return func(b *Beginning) Verdict {
		asked := b.asked
		v := m(b)
		b.asked = asked
		switch {
		case v == Yes:
			return No
		case v == No, b.over:
			return Yes
		}
		return More
	}
}

// Prefix matches connections whose first bytes are one of the prefixes: of what TLS
// carries where it is terminated, else as they are on the wire, so that "\x16\x03" is TLS.
func Prefix(prefixes ...string) Matcher {
	headers := slices.DeleteFunc(slices.Clone(prefixes), func(p string) bool { return isProxyHeader([]byte(p)) != Yes })
	return func(b *Beginning) Verdict {
		v := begins(b.First, prefixes...)
		switch {
		case v == Yes:
			b.asked = b.asked || begins(b.First, headers...) == Yes
		case v == No && b.Sealed():
			return More
		}
		return v
	}
}

// begins tells whether the bytes begin with one of the prefixes.
func begins(b []byte, prefixes ...string) Verdict {
	v := No
	for _, p := range prefixes {
		switch {
		case len(b) >= len(p):
			if string(b[:len(p)]) == p {
				return Yes
			}
		case string(b) == p[:len(b)]:
			v = More
		}
	}
	return v
}

// isProxyHeader tells whether the bytes are a PROXY protocol header of version 1 or 2
// (https://www.haproxy.org/download/3.4/doc/proxy-protocol.txt), by their signature.
func isProxyHeader(b []byte) Verdict { return begins(b, "PROXY ", "\r\n\r\n\x00\r\nQUIT\n") }
