package attack

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"time"
)

// An attacker is one connection of an attack.
type attacker struct {
	net.Conn // TLS, once it is
	raw      *net.TCPConn
	force    *force
	number   int64 // from 1
	born     time.Time
	keys     bytes.Buffer // what crypto/tls logs of them, if the attack wants them
	unwatch  func() bool
}

// advance brings it to the attack's phase.
func (a *attacker) advance() error {
	f := a.force
	if f.attack.Phase <= PhaseHeader {
		return nil
	}
	if f.target.proxyHeader {
		if err := a.send(proxyHeader(a.raw)); err != nil {
			return err
		}
	}
	if f.attack.Phase == PhaseRequest && (f.target.tls != nil || f.attack.needs&needTLS != 0) {
		return a.secure(f.target.forTLS)
	}
	return nil
}

// secure goes on in TLS.
func (a *attacker) secure(config *tls.Config) error {
	c := tls.Client(a.raw, config)
	if err := c.Handshake(); err != nil {
		return err
	}
	a.Conn = c
	return nil
}

// leave has the kernel forget the connection, or those who hold thousands would find
// no port for the next attack.
func (a *attacker) leave() {
	a.unwatch()
	_ = a.raw.SetLinger(0)
	a.raw.Close()
}

var errSpent = errors.New("enough was sent")

// send sends all of it, within the attack's budget.
func (a *attacker) send(p []byte) error {
	if a.force.budget.Add(-int64(len(p))) < 0 {
		return errSpent
	}
	_, err := a.Write(p)
	return err
}

// stay reads what comes, until the server ends it, and returns how.
func (a *attacker) stay() error {
	var buffer [512]byte
	for {
		if _, err := a.Read(buffer[:]); err != nil {
			return err
		}
	}
}

// listen reads what comes for a while.
func (a *attacker) listen(ctx context.Context, d time.Duration) error {
	if err := a.SetReadDeadline(time.Now().Add(d)); err != nil {
		return err
	}
	if ctx.Err() != nil { // which may have set a deadline that is no more
		return ctx.Err()
	}
	if err := a.stay(); !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return ctx.Err()
}

// drip sends a byte at every beat, over and over from the start if there is no end
// to it, and returns how the server ends it.
func (a *attacker) drip(ctx context.Context, p []byte) error {
	for i := range p {
		if err := a.send(p[i : i+1]); err != nil {
			return err
		}
		if err := a.listen(ctx, a.force.beat); err != nil {
			return err
		}
	}
	return a.listenOn(ctx)
}

// listenOn is stay after listen, whose deadline it lifts.
func (a *attacker) listenOn(ctx context.Context) error {
	for {
		if err := a.listen(ctx, time.Minute); err != nil {
			return err
		}
	}
}
