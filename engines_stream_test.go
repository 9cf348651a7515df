package levee_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee"
)

// What a client sends and gets: in order, whole, and to the last byte.

// dialogue returns lines that ask for an echo, up to some 200 KiB, and the replies.
func dialogue(random *rand.Rand) (requests, replies []byte) {
	size := 1 << random.IntN(18)
	for len(requests) < size {
		text := make([]byte, randomLength(random))
		for i := range text {
			text[i] = 'a' + byte(random.IntN(26))
		}
		requests = append(append(append(requests, "echo "...), text...), '\n')
		replies = append(append(replies, text...), '\n')
	}
	return requests, replies
}

// randomLength is short most of the time.
func randomLength(random *rand.Rand) int {
	switch n := random.IntN(100); {
	case n < 90:
		return random.IntN(100)
	case n < 99:
		return random.IntN(6 << 10)
	}
	return random.IntN(100 << 10)
}

// pieces calls f with parts of random sizes, now tiny ones and now large ones.
func pieces(random *rand.Rand, b []byte, f func([]byte) error) error {
	for len(b) > 0 {
		n := min(len(b), 1+random.IntN(1<<random.IntN(17)))
		if err := f(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// readRandomly reads to the end of the stream.
func readRandomly(random *rand.Rand, c io.Reader) (all []byte, err error) {
	buffer := make([]byte, 64<<10)
	for err == nil {
		var n int
		n, err = c.Read(buffer[:1+random.IntN(1<<random.IntN(17))])
		all = append(all, buffer[:n]...)
	}
	if err == io.EOF {
		err = nil
	}
	return all, err
}

// converse has a dialogue with the server, and expects its replies and its count.
func converse(s *scene, random, reader *rand.Rand) {
	requests, replies := dialogue(random)
	c := s.dial()
	var writing sync.WaitGroup
	writing.Go(func() {
		err := pieces(random, requests, func(piece []byte) error {
			_, err := c.Write(piece)
			return err
		})
		if err = errors.Join(err, c.CloseWrite()); err != nil {
			s.t.Error("write:", err)
		}
	})
	got, err := readRandomly(reader, c)
	writing.Wait()
	if err != nil || !bytes.Equal(got, replies) {
		s.t.Fatalf("read %d bytes, %v; want %d", len(got), err, len(replies))
	}
	end := s.expectCleanEnd(levee.ClientClosed)
	checkTraffic(s, end.Read, end.Written, len(requests), len(replies))
}

// checkTraffic expects counts of what was sent; TLS adds to it.
func checkTraffic(s *scene, read, written int64, sent, got int) {
	s.t.Helper()
	exact := read == int64(sent) && written == int64(got)
	if more := read > int64(sent) && written > int64(got); !exact && !(s.engine.tls && more) {
		s.t.Errorf("%d bytes read and %d written, want %d and %d", read, written, sent, got)
	}
}

func TestRepliesComeInOrderHoweverTheStreamIsCut(t *testing.T) {
	seed := rand.Uint64()
	onEveryEngine(t, func(t *testing.T, e engine) {
		for _, single := range []bool{false, true} {
			s := e.serve(t, &levee.Server{Handler: &lines{single: single, t: t}})
			for i := range uint64(12) {
				converse(s, rand.New(rand.NewPCG(seed, i)), rand.New(rand.NewPCG(seed, ^i)))
				if t.Failed() {
					t.Fatalf("seed %d, dialogue %d, a line per Step: %t", seed, i, single)
				}
			}
		}
	})
}

func TestTrafficAndStatsCountWhileAConnectionIsOpen(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}})
		client, c := s.greet()
		send(t, client, "echo 1\necho 23\n")
		want(t, client, "1\n23\n")
		send(t, client, "echo done\n") // its Step comes after the count of what was written before
		want(t, client, "done\n")
		read, written := c.Traffic()
		if stats := s.Stats(); stats.Read != read || stats.Written < written {
			t.Errorf("Stats say %d and %d, Traffic %d and %d", stats.Read, stats.Written, read, written)
		}
		client.CloseWrite()
		end := s.expectCleanEnd(levee.ClientClosed)
		checkTraffic(s, end.Read, end.Written, len("echo hello\necho 1\necho 23\necho done\n"), len("hello\n1\n23\ndone\n"))
		if stats := s.Stats(); stats.Read != end.Read || stats.Written != end.Written {
			t.Errorf("Stats say %d and %d, the end %d and %d", stats.Read, stats.Written, end.Read, end.Written)
		}
	})
}

func TestALargeMessageArrivesWhole(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{t: t}})
		c := s.dial()
		text := strings.Repeat("0123456789abcde\t", 3<<20/16)
		go io.WriteString(c, "echo "+text+"\necho more\n") // ends with the connection
		want(t, c, text+"\nmore\n")
		c.CloseWrite()
		s.expectCleanEnd(levee.ClientClosed)
	})
}

// A reply may be a part of what Step was given.
func TestAReplyMayBeAPartOfTheMessage(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.serve(t, &levee.Server{Handler: steps(func(_ *levee.Conn, in []byte, _ int, _ []byte) (int, []byte, error) {
			n := bytes.LastIndexByte(in, '\n') + 1
			return n, in[:n], nil
		})})
		c := s.dial()
		text := string(big(1<<20)) + "\n"   // more than the kernel takes at once
		go io.WriteString(c, text+"rest\n") // ends with the connection
		want(t, c, text+"rest\n")
	})
}

// steps is a function that is a Stepper.
type steps func(c *levee.Conn, in []byte, seen int, out []byte) (int, []byte, error)

func TestWhatWasSentBeforeAHalfCloseIsAnswered(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}})
		c := s.dial()
		send(t, c, strings.Repeat("echo 0123456789\n", 5000))
		c.CloseWrite()
		want(t, c, strings.Repeat("0123456789\n", 5000))
		wantEOF(t, c)
		s.expectCleanEnd(levee.ClientClosed)
	})
}

func TestAStreamThatEndsWithinAMessageIsAnUnexpectedEOF(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}})
		c := s.dial()
		send(t, c, "echo whole\necho pa")
		want(t, c, "whole\n")
		c.CloseWrite()
		wantEOF(t, c)
		if end := s.expectEnd(levee.ClientClosed); !errors.Is(end.Err, io.ErrUnexpectedEOF) {
			t.Errorf("the error is %v, want io.ErrUnexpectedEOF", end.Err)
		}
	})
}

func TestAClientThatOnlyConnectsAndClosesIsClientClosed(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		if !e.servesTheSilent() {
			t.Skip("it never arrives")
		}
		s := e.serve(t, &levee.Server{Handler: &lines{}})
		s.dial().Close()
		end := s.expectCleanEnd(levee.ClientClosed)
		checkTraffic(s, end.Read, end.Written, 0, 0)
	})
}

// trickle waits until the server writes no more, be it that it is done or that the
// client would have to read; then it sends an empty line now and then for a while, or
// until nobody wants it.
func trickle(s *scene, c io.Writer) {
	every := time.NewTicker(2 * time.Millisecond)
	defer every.Stop()
	start := s.Stats().Written
	for quiet, before := 0, start; quiet < 10 || before == start && quiet < 40; quiet++ { // a write that blocks is not counted yet
		<-every.C
		if written := s.Stats().Written; written != before {
			quiet, before = 0, written
		}
	}
	for range 20 {
		<-every.C
		if _, err := c.Write([]byte("\n")); err != nil {
			return
		}
	}
}

// However a Step ends its connection, what it replied gets across, also when the
// client goes on sending and only then reads.
func TestTheLastReplyIsDeliveredToAClientThatIsStillSending(t *testing.T) {
	for _, ending := range []struct {
		command, reply string
		reason         levee.CloseReason
		err            error
	}{
		{"fail", "sorry\n", levee.HandlerError, errStep},
		{"close", "bye\n", levee.HandlerClosed, nil},
		{"drain", "leaving\n", levee.Drained, nil},
	} {
		t.Run(ending.command, func(t *testing.T) {
			onEveryEngine(t, func(t *testing.T, e engine) {
				s := e.serve(t, &levee.Server{Handler: &lines{}})
				for _, size := range []int{100_000, 300_000} { // about what one kernel takes, and what two do
					c := s.dial()
					send(t, c, fmt.Sprintln(ending.command, size))
					trickle(s, c)
					want(t, c, string(big(size))+ending.reply)
					io.Copy(io.Discard, c)
					c.Close()
					end := s.expectEnd(ending.reason)
					if !errors.Is(end.Err, ending.err) || ending.err == nil && end.Err != nil {
						t.Errorf("the error is %v, want %v", end.Err, ending.err)
					}
				}
			})
		})
	}
}

// The last reply had to wait for the client, and the client has sent more: the end
// comes when the client has closed, and not only when nobody has patience any more.
func TestAnEndThatHadToWaitComesWithTheClientsClose(t *testing.T) {
	const size = 3 << 20
	const patience = 500 * time.Millisecond // of a goodbye
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{single: true}})
		c := s.dial()
		send(t, c, fmt.Sprintf("close %d\n", size)+strings.Repeat("\n", 100))
		trickle(s, c)
		want(t, c, string(big(size))+"bye\n")
		io.Copy(io.Discard, c)
		closed := time.Now()
		c.Close()
		s.expectCleanEnd(levee.HandlerClosed)
		if took := time.Since(closed); took > patience*3/4 {
			t.Errorf("the end came %v after the client's close", took)
		}
	})
}

func TestTheLastReplyIsDeliveredToAClientThatFloods(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}})
		c := s.dial()
		io.WriteString(c, "fail\n"+strings.Repeat("echo more\n", 10_000)) // it may get in the way of the end
		want(t, c, "sorry\n")
		c.Close()
		if end := s.expectEnd(levee.HandlerError); !errors.Is(end.Err, errStep) {
			t.Errorf("the error is %v, want the handler's", end.Err)
		}
	})
}

func TestAnEndInGoodOrderIsSeenAsOne(t *testing.T) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		s := e.serve(t, &levee.Server{Handler: &lines{}})
		for _, ending := range []struct {
			command, reply string
			reason         levee.CloseReason
		}{{"close", "bye\n", levee.HandlerClosed}, {"fail", "sorry\n", levee.HandlerError}} {
			c := s.dial()
			send(t, c, "echo a\n"+ending.command+"\n")
			want(t, c, "a\n"+ending.reply)
			wantEOF(t, c)
			end := s.expectEnd(ending.reason)
			if ending.reason == levee.HandlerClosed && end.Err != nil {
				t.Errorf("the error is %v, want none", end.Err)
			}
			if ending.reason == levee.HandlerError && end.Err != errStep {
				t.Errorf("the error is %v, want the handler's own, unwrapped", end.Err)
			}
		}
	})
}

func TestAResetWithinAMessageIsClientReset(t *testing.T)                  { testReset(t, "echo pa") }
func TestAResetBetweenMessagesIsClientResetWithNetsOwnError(t *testing.T) { testReset(t, "") }

// testReset has a client reset the connection after it has sent part of a message.
func testReset(t *testing.T, part string) {
	onEveryEngine(t, func(t *testing.T, e engine) {
		if e.network == "unix" {
			t.Skip("there is no reset")
		}
		partial := make(chan struct{}, 10)
		s := e.serve(t, &levee.Server{Handler: &lines{partial: func(*levee.Conn) { partial <- struct{}{} }}})
		c, _ := s.greet()
		if part != "" {
			send(t, c, part)
			receive(t, partial)
		}
		resetByClient(t, c)
		end := s.expectEnd(levee.ClientReset)
		op, ok := errors.AsType[*net.OpError](end.Err)
		if !ok || op.Op != "read" || !errors.Is(op, syscall.ECONNRESET) {
			t.Errorf("the error is %#v, want a net.OpError of read", end.Err)
		}
	})
}

func (f steps) ServeTCP(_ context.Context, c *levee.Conn) error { return levee.ServeSteps(c, f) }

func (f steps) Step(c *levee.Conn, in []byte, seen int, out []byte) (int, []byte, error) {
	return f(c, in, seen, out)
}
