package levee

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"github.com/pires/go-proxyproto"
)

// The PROXY protocol (https://www.haproxy.org/download/3.4/doc/proxy-protocol.txt)
// tells a server behind a proxy who its client is. It is a claim, so it is
// believed from listed sources only, where it is required; from anybody else it
// ends the connection. It is never guessed.

const (
	v1Limit  = 107 // section 2.1: the longest line, CR and LF included
	v2Prefix = 16  // section 2.2: signature, version, family, length

	maxProxyHeader = 16 << 10
)

var (
	v1Signature = []byte("PROXY ")
	v2Signature = []byte("\r\n\r\n\x00\r\nQUIT\n")
)

var (
	errProxyHeaderMissing  = errors.New("PROXY header: missing from a source that must send one")
	errProxyHeaderEndless  = fmt.Errorf("PROXY header: no end of line within %d bytes", v1Limit)
	errProxyHeaderTooLarge = fmt.Errorf("PROXY header: longer than %d bytes", maxProxyHeader)
	errProxyHeaderRefused  = errors.New("PROXY header: from a source that is not listed")
)

// readProxyHeader reads the header that this source must send, and not a byte
// beyond it.
func (s *stream) readProxyHeader() error {
	size, err := s.wire.proxyHeaderSize()
	if err != nil {
		return err
	}
	raw, err := s.wire.peek(size)
	if err != nil {
		return err
	}
	header, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(raw)))
	if err != nil {
		return fmt.Errorf("PROXY header: %w", err)
	}
	s.wire.held.discard(size)
	// LOCAL and UNKNOWN are the proxy speaking for itself: the socket's address holds.
	if source, ok := header.SourceAddr.(*net.TCPAddr); ok && header.Command == proxyproto.PROXY {
		s.conn.setProxied(addrPort(source))
		s.conn.readTraceParent(header)
	}
	return nil
}

// readTraceParent looks for one among the header's TLVs. That there is none, or what it says
// makes no sense, is nobody's trouble: the connection is then the beginning of a trace.
func (c *Conn) readTraceParent(header *proxyproto.Header) {
	tlvs, err := header.TLVs()
	if err != nil {
		return
	}
	for _, tlv := range tlvs {
		if tlv.Type != TraceParentTLV {
			continue
		}
		if parent, err := ParseTraceParent(string(tlv.Value)); err == nil {
			c.setTraceParent(parent)
		}
		return
	}
}

// proxyHeaderSize peeks just far enough to tell where the header ends. What is none shows
// by its first byte that differs.
func (w *wire) proxyHeaderSize() (int, error) {
	for n := 1; ; n++ {
		b, err := w.peek(n)
		v1, v2 := bytes.HasPrefix(v1Signature, b), bytes.HasPrefix(v2Signature, b)
		switch {
		case !v1 && !v2:
			return 0, errProxyHeaderMissing
		case err != nil:
			return 0, err
		case v1 && n == len(v1Signature):
			return w.v1Size()
		case v2 && n == len(v2Signature):
			return w.v2Size()
		}
	}
}

func (w *wire) v2Size() (int, error) {
	b, err := w.peek(v2Prefix)
	if err != nil {
		return 0, err
	}
	size := v2Prefix + int(binary.BigEndian.Uint16(b[v2Prefix-2:]))
	if size > maxProxyHeader {
		return 0, errProxyHeaderTooLarge
	}
	return size, nil
}

func (w *wire) v1Size() (int, error) {
	for {
		have := w.held.buffered()
		b, err := w.peek(min(have, v1Limit))
		if end := bytes.IndexByte(b, '\n'); end >= 0 {
			return end + 1, nil
		}
		if have >= v1Limit {
			return 0, errProxyHeaderEndless
		}
		if err == nil {
			_, err = w.peek(have + 1)
		}
		if err != nil {
			return 0, err
		}
	}
}

// screen looks at the first bytes of a source that must not send a PROXY header,
// as they come in, and ends the connection once they have become the signature of
// one. It holds nothing back: a protocol in which the server speaks first, or whose
// messages begin with a P or an empty line, does not notice.
func (w *wire) screen(b []byte) error {
	w.mu.Lock()
	if w.signature == nil {
		w.signature = v2Signature
		if b[0] == v1Signature[0] {
			w.signature = v1Signature
		}
	}
	n := min(len(b), len(w.signature))
	alike := bytes.Equal(b[:n], w.signature[:n])
	w.signature = w.signature[n:]
	complete := len(w.signature) == 0
	w.mu.Unlock()

	if !alike || complete {
		w.screening.Store(false)
	}
	if alike && complete {
		return w.conn.cut(ProxyHeaderRefused, errProxyHeaderRefused)
	}
	return nil
}
