package proxy

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"strings"
	"sync"

	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"

	"github.com/levee-net/levee"
)

// A Header is a version of the PROXY protocol's header, which tells a server behind a
// proxy who its client is (https://www.haproxy.org/download/3.4/doc/proxy-protocol.txt).
type Header uint8

// The headers.
const (
	NoHeader Header = iota
	V1              // a line of text: the addresses
	V2              // binary: the addresses, and what TLVs there are for
)

// ParseHeader returns the Header of a word: "", "v1" or "v2".
func ParseHeader(word string) (Header, error) {
	switch word {
	case "":
		return NoHeader, nil
	case "v1":
		return V1, nil
	case "v2":
		return V2, nil
	}
	return NoHeader, fmt.Errorf("unknown PROXY header %q; there are v1 and v2", word)
}

// Of returns the header for a connection: its client's address, be it known from a
// PROXY header itself, and the address that it was accepted on. With V2 it carries
// what the client asked for in TLS (AUTHORITY, if it can be a host's name, and ALPN), what TLS agreed on and the
// common name of a verified client certificate (SSL), and an id of the connection that
// is unique over processes (UNIQUE_ID): 8 random bytes of the process and 8 of
// [levee.Conn.ID]. A client without an IP address is UNKNOWN in V1 and LOCAL in V2. It
// returns nil for NoHeader.
func (h Header) Of(c *levee.Conn) ([]byte, error) { return h.with(c, levee.TraceParent{}) }

// with returns the header that, with V2, says too what the connection is a part of.
func (h Header) with(c *levee.Conn, parent levee.TraceParent) ([]byte, error) {
	if h == NoHeader {
		return nil, nil
	}
	header := proxyproto.HeaderProxyFromAddrs(byte(h), c.RemoteAddr(), c.LocalAddr())
	if h == V2 {
		tlvs, err := tlvsOf(c)
		if parent.IsValid() {
			tlvs = append(tlvs, proxyproto.TLV{Type: levee.TraceParentTLV, Value: []byte(parent.String())})
		}
		if err == nil {
			err = header.SetTLVs(tlvs)
		}
		if err != nil {
			return nil, fmt.Errorf("PROXY header: %w", err)
		}
	}
	raw, err := header.Format()
	if err != nil {
		return nil, fmt.Errorf("PROXY header: %w", err)
	}
	return raw, nil
}

// Local returns the header by which a proxy speaks for itself, as health checks do.
func (h Header) Local() []byte {
	if h == NoHeader {
		return nil
	}
	raw, _ := proxyproto.HeaderProxyFromAddrs(byte(h), nil, nil).Format() // without addresses there is nothing to be wrong
	return raw
}

func tlvsOf(c *levee.Conn) ([]proxyproto.TLV, error) {
	tlvs := []proxyproto.TLV{{Type: proxyproto.PP2_TYPE_UNIQUE_ID, Value: uniqueID(c.ID())}}
	state := c.TLS()
	if state == nil {
		return tlvs, nil
	}
	if isName(state.ServerName) {
		tlvs = append(tlvs, proxyproto.TLV{Type: proxyproto.PP2_TYPE_AUTHORITY, Value: []byte(state.ServerName)})
	}
	if state.NegotiatedProtocol != "" {
		tlvs = append(tlvs, proxyproto.TLV{Type: proxyproto.PP2_TYPE_ALPN, Value: []byte(state.NegotiatedProtocol)})
	}
	ssl, err := sslOf(state).Marshal()
	return append(tlvs, ssl), err
}

// longestName is what DNS knows (RFC 1035, section 2.3.4), and what an upstream may have
// room for.
const longestName = 255

// isName reports whether a client has asked for something that can be a host's name.
// crypto/tls lets any bytes pass, up to 64 KiB of them.
func isName(s string) bool {
	notOfNames := func(r rune) bool {
		letter := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
		return !letter && !('0' <= r && r <= '9') && r != '-' && r != '.' && r != '_'
	}
	return s != "" && len(s) <= longestName && strings.IndexFunc(s, notOfNames) < 0
}

// sslOf says what TLS agreed on, as HAProxy words it: TLSv1.3, not TLS 1.3.
func sslOf(state *tls.ConnectionState) tlvparse.PP2SSL {
	ssl := tlvparse.PP2SSL{
		Client: tlvparse.PP2_BITFIELD_CLIENT_SSL,
		Verify: 1,
		TLV: []proxyproto.TLV{
			{Type: proxyproto.PP2_SUBTYPE_SSL_VERSION, Value: []byte(strings.Replace(tls.VersionName(state.Version), "TLS ", "TLSv", 1))},
			{Type: proxyproto.PP2_SUBTYPE_SSL_CIPHER, Value: []byte(tls.CipherSuiteName(state.CipherSuite))},
		},
	}
	if len(state.PeerCertificates) == 0 {
		return ssl
	}
	ssl.Client |= tlvparse.PP2_BITFIELD_CLIENT_CERT_SESS
	if !state.DidResume {
		ssl.Client |= tlvparse.PP2_BITFIELD_CLIENT_CERT_CONN
	}
	if len(state.VerifiedChains) > 0 { // a name that nobody has vouched for is not passed on
		ssl.Verify = 0
		name := state.PeerCertificates[0].Subject.CommonName
		ssl.TLV = append(ssl.TLV, proxyproto.TLV{Type: proxyproto.PP2_SUBTYPE_SSL_CN, Value: []byte(name)})
	}
	return ssl
}

// process is this process's part of unique ids.
var process = sync.OnceValue(func() (random [8]byte) {
	_, _ = rand.Read(random[:]) // never fails
	return random
})

func uniqueID(conn uint64) []byte {
	random := process()
	return binary.BigEndian.AppendUint64(random[:], conn)
}
