package route

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/servername"
)

// A Verdict is what a [Matcher] makes of a connection's beginning.
type Verdict uint8

// The verdicts.
const (
	No   Verdict = iota // whatever follows
	Yes                 // whatever follows
	More                // cannot tell yet
)

// A Matcher looks at how a connection begins, of which there may be nothing yet. Once
// it has said Yes or No it must say the same whatever bytes follow; only when TLS
// has been terminated it is asked anew. It must not keep the bytes, nor read from the
// connection.
type Matcher func(b *Beginning) Verdict

// A Beginning is what is known of a connection that is being routed.
type Beginning struct {
	// Conn tells where the connection comes from, and what TLS has agreed on.
	Conn *levee.Conn

	// First are the bytes that have come so far: as they are on the wire or, once TLS
	// has been terminated, those that it carries.
	First []byte

	hello  *Hello
	reason error // why First cannot become a hello
	walk   walk

	open       bool        // TLS has been terminated
	ours       bool        // by this router
	config     *tls.Config // what it was terminated with
	negotiated string      // what ALPN agreed on then
	over       bool        // nothing more will be known: More is as good as No
	asked      bool        // a Prefix has asked for the PROXY header that there is
}

// Sealed reports whether the bytes are TLS that has not been terminated. What they
// carry only its termination would tell, so a matcher for that answers More.
func (b *Beginning) Sealed() bool {
	return !b.open && len(b.First) > 0 && b.First[0] == recordHandshake
}

// Hello returns the client's TLS hello, and Yes once it is there. More says that it
// may come, and No that it will not: the bytes are not TLS, or not as TLS has to be.
//
// Of a connection that [levee.Server.TLSConfig] has terminated it says what the
// handshake agreed on.
func (b *Beginning) Hello() (*Hello, Verdict) {
	switch {
	case b.hello != nil:
		return b.hello, Yes
	case b.open || b.reason != nil:
		return nil, No
	case len(b.First) == 0:
		return nil, More
	case !b.Sealed():
		return nil, No
	}
	size, err := b.walk.on(b.First)
	switch {
	case err != nil:
		b.reason = err
		return nil, No
	case size == 0:
		return nil, More
	}
	b.hello, b.reason = parseHello(b.First[:size])
	if b.reason != nil {
		return nil, No
	}
	return b.hello, Yes
}

// read waits for more than there is. It sets over when there is no more to be had.
func (b *Beginning) read() error {
	seen, err := b.Conn.Peek(max(b.Conn.Buffered(), len(b.First)+1))
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, bufio.ErrBufferFull):
		b.over = true
	case err != nil:
		return err
	}
	b.First = seen
	return nil
}

// awaitHello waits for the hello, and tells the client what is wrong with it.
func (b *Beginning) awaitHello() error {
	for {
		switch _, v := b.Hello(); {
		case v == Yes:
			return nil
		case v == No:
			b.alert(alertDecodeError)
			return badHello(b.reason)
		case b.over:
			return badHello(fmt.Errorf("it ends after %d bytes: %w", len(b.First), io.ErrUnexpectedEOF))
		}
		if err := b.read(); err != nil {
			return err
		}
	}
}

// alert tells a client why its handshake goes no further.
func (b *Beginning) alert(description byte) {
	const fatal = 2
	_, _ = b.Conn.Write([]byte{recordAlert, 3, 3, 0, 2, fatal, description}) // the connection ends in any case
}

// terminate makes the TLS handshake, and begins anew with what it carries.
func (b *Beginning) terminate(config *tls.Config) error {
	if err := b.Conn.StartTLS(config); err != nil {
		return err
	}
	b.ours = true
	return b.begin(config)
}

// begin begins with what TLS carries that config has terminated. What the handshake
// agreed on has to be what the hello had asked for: an encrypted hello within the
// hello, say, may ask for something else.
func (b *Beginning) begin(config *tls.Config) error {
	state := b.Conn.TLS()
	name, err := servername.Normalize(state.ServerName)
	protocol := state.NegotiatedProtocol
	switch {
	case err != nil:
		return badHello(err)
	case b.hello == nil:
		b.hello = &Hello{ServerName: name, Versions: []uint16{state.Version}}
		if protocol != "" {
			b.hello.ALPN = []string{protocol}
		}
	case name != b.hello.ServerName || protocol != "" && !slices.Contains(b.hello.ALPN, protocol):
		return badHello(errDisagrees)
	}
	b.First = nil
	b.open, b.config, b.negotiated = true, config, protocol
	return nil
}

var errDisagrees = errors.New("the handshake agreed on something else")
