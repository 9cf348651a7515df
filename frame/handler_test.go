package frame_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/frame"
	"github.com/levee-net/levee/leveetest"
)

func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := start(t, &levee.Server{Handler: frame.Handler(frame.Lines(0), echo)})
		requests := numbered(10_000)
		go func() {
			send(t, c, requests)
			c.CloseWrite()
		}()
		expectAll(t, c, requests)
		s.checkEnd(t, levee.ClientClosed)
	})
}

func TestRepliesToMessagesThatCameTogetherGoOutInOneWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := leveetest.Listen()
		l := &countedListener{Listener: network}
		serve(t, l, &levee.Server{Handler: frame.Handler(frame.Lines(0), echo)})
		c := dial(t, network)
		requests := numbered(500)
		for batch := range int32(3) {
			send(t, c, requests)
			expect(t, c, requests)
			synctest.Wait()
			if writes := l.writes.Load(); writes != batch+1 {
				t.Fatalf("%d writes for %d batches", writes, batch+1)
			}
		}
	})
}

func TestRepliesAreWrittenBeforeTheRestOfAMessageHasCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := start(t, &levee.Server{Handler: frame.Handler(frame.Lines(0), echo)})
		send(t, c, "one\ntwo\nthr")
		expect(t, c, "one\ntwo\n")
		send(t, c, "ee\n")
		expect(t, c, "three\n")
	})
}

func TestAStreamMayBeCutAnywhere(t *testing.T) {
	large := strings.Repeat("x", 70<<10) // more than a buffer
	for _, codec := range []frame.Codec{frame.Lines(256 << 10), frame.Uint32(nil, 256<<10), frame.Varint(256 << 10), frame.Delimited([]byte("\r\n"), 256<<10)} {
		for seed := range uint64(10) {
			synctest.Test(t, func(t *testing.T) {
				network := leveetest.Listen()
				cuts := leveetest.Fault{Seed: seed + 1, Segment: 10 + int(seed*seed*seed*100)}
				serve(t, leveetest.FaultyListener(network, leveetest.Faults{Read: cuts, Write: cuts}),
					&levee.Server{Handler: frame.Handler(codec, echo)})
				c := dial(t, network)
				messages := [][]byte{[]byte("a"), nil, []byte("bcd"), bytes.Repeat([]byte("e"), 5000), []byte(large), []byte("f")}
				go func() { _ = frame.Write(c, codec, messages...) }()
				r := frame.NewReader(c, codec)
				for _, want := range messages {
					if got, err := r.Read(); !bytes.Equal(got, want) || err != nil {
						t.Fatalf("seed %d: read %.20q (%d bytes), %v, want %.20q (%d bytes)", seed, got, len(got), err, want, len(want))
					}
				}
			})
		}
	}
}

func TestAClientThatDoesNotReadIsNotReadAndEndsAsStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const capacity = 256 << 10 // bytes, each way
		l := leveetest.Network{Buffer: capacity}.Listen()
		s := serve(t, l, &levee.Server{Handler: frame.Handler(frame.Lines(0), echo), WriteStallTimeout: 30 * time.Second})
		c := dial(t, l)
		var sent atomic.Int64
		go func() {
			batch := []byte(numbered(1000))
			for {
				n, err := c.Write(batch)
				sent.Add(int64(n))
				if err != nil {
					return
				}
			}
		}()
		time.Sleep(20 * time.Second) // virtual time
		if len(s.ends) > 0 {
			t.Fatalf("ended before its time: %+v", <-s.ends)
		}
		read, written := s.Conns()[0].Traffic()
		if held := read - written; held > 64<<10+64<<10+8<<10 {
			t.Errorf("%d bytes are held for a client that does not read", held)
		}
		end := s.checkEnd(t, levee.WriteStalled)
		if end.Read != read {
			t.Errorf("%d more bytes were read from a client that does not read", end.Read-read)
		}
	})
}

func TestASlowReaderGetsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Network{Buffer: 8 << 10}.Listen()
		serve(t, l, &levee.Server{Handler: frame.Handler(frame.Lines(0), echo), WriteStallTimeout: 30 * time.Second})
		c := dial(t, l)
		requests := numbered(50_000)
		go func() { _, _ = io.WriteString(c, requests) }()
		for rest := requests; len(rest) > 0; {
			piece := rest[:min(10_000, len(rest))]
			time.Sleep(10 * time.Second) // virtual time
			expect(t, c, piece)
			rest = rest[len(piece):]
		}
	})
}

func TestALengthBombIsRefusedFromItsHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := start(t, &levee.Server{Handler: frame.Handler(frame.Uint64(nil, 0), echo)})
		send(t, c, "\x00\x00\x00\x00\x00\x00\x00\x01a"+"\x80\x00\x00\x00\x00\x00\x00\x00")
		expectAll(t, c, "\x00\x00\x00\x00\x00\x00\x00\x01a") // what came before it is answered
		if end := s.checkEnd(t, levee.HandlerError); !errors.Is(end.Err, frame.ErrTooLarge) {
			t.Errorf("ended with %v, want ErrTooLarge", end.Err)
		}
	})
}

func TestTheFunctionsErrorEndsTheConnectionAfterItsReplies(t *testing.T) {
	broken := errors.New("out of paper")
	for _, test := range []struct {
		returned error
		reason   levee.CloseReason
		err      error
	}{
		{broken, levee.HandlerError, broken},
		{frame.ErrClose, levee.HandlerClosed, nil},
		{fmt.Errorf("quit: %w", frame.ErrClose), levee.HandlerClosed, nil},
		{io.EOF, levee.HandlerError, io.ErrUnexpectedEOF},
	} {
		synctest.Test(t, func(t *testing.T) {
			c, s := start(t, &levee.Server{Handler: frame.Handler(frame.Lines(0), func(w *frame.Writer, line []byte) error {
				if string(line) == "three" {
					w.WriteRaw([]byte("bye\r\n"))
					return test.returned
				}
				return w.Write(line)
			})})
			send(t, c, "one\ntwo\nthree\nfour\n")
			expectAll(t, c, "one\ntwo\nbye\r\n")
			if end := s.checkEnd(t, test.reason); !errors.Is(end.Err, test.err) {
				t.Errorf("%v: ended with %v, want %v", test.returned, end.Err, test.err)
			}
		})
	}
}

func TestAReplyThatCannotBeEncodedIsAnErrorOfItsFunction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := start(t, &levee.Server{Handler: frame.Handler(frame.Lines(8), func(w *frame.Writer, line []byte) error {
			if err := w.Write(append(line, "\r\nInjected: yes"...)); !errors.Is(err, frame.ErrTooLarge) {
				return err
			}
			return w.Write([]byte("a\nb"))
		})})
		send(t, c, "hello\n")
		expectAll(t, c, "")
		if end := s.checkEnd(t, levee.HandlerError); !errors.Is(end.Err, frame.ErrMalformed) {
			t.Errorf("ended with %v, want ErrMalformed", end.Err)
		}
	})
}

func TestTheEndOfTheStream(t *testing.T) {
	for _, test := range []struct {
		name, stream, replies string
		err                   error
	}{
		{"before any message", "", "", nil},
		{"between messages", "one\n", "one\n", nil},
		{"within a message", "one\ntw", "one\n", io.ErrUnexpectedEOF},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s := start(t, &levee.Server{Handler: frame.Handler(frame.Lines(0), echo)})
				send(t, c, test.stream)
				c.CloseWrite()
				expectAll(t, c, test.replies)
				if end := s.checkEnd(t, levee.ClientClosed); !errors.Is(end.Err, test.err) {
					t.Errorf("ended with %v, want %v", end.Err, test.err)
				}
			})
		})
	}
}

func TestAnIdleClientEndsByTheServersTimeout(t *testing.T) {
	for name, stream := range map[string]string{"between messages": "one\n", "within a message": "one\ntw"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s := start(t, &levee.Server{Handler: frame.Handler(frame.Lines(0), echo), IdleTimeout: time.Minute})
				send(t, c, stream)
				began := time.Now()
				expectAll(t, c, "one\n")
				if took := time.Since(began); took != time.Minute {
					t.Errorf("ended after %v, want 1m0s", took)
				}
				s.checkEnd(t, levee.IdleTimeout)
			})
		})
	}
}

func TestDrainAnswersWhatHasArrived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		c, s := start(t, &levee.Server{Handler: frame.Handler(frame.Lines(0), func(w *frame.Writer, line []byte) error {
			if string(line) == "1" {
				<-gate
			}
			return w.Write(line)
		})})
		send(t, c, "1\n")
		synctest.Wait() // the function has the first message, the others have not been read
		send(t, c, "2\n3\n")
		s.Conns()[0].Drain(nil)
		synctest.Wait()
		close(gate)
		expectAll(t, c, "1\n2\n3\n")
		s.checkEnd(t, levee.Drained)
	})
}

func TestDrainWaitsForTheRestOfAMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := start(t, &levee.Server{Handler: frame.Handler(frame.Lines(0), echo)})
		send(t, c, "hal")
		synctest.Wait()
		s.Conns()[0].Drain(nil)
		time.Sleep(10 * time.Second) // virtual time
		send(t, c, "f\n")
		expectAll(t, c, "half\n")
		s.checkEnd(t, levee.Drained)
	})
}

func TestDrainLetsAQuietConnectionLeaveAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := start(t, &levee.Server{Handler: frame.Handler(frame.Lines(0), echo)})
		send(t, c, "one\n")
		expect(t, c, "one\n")
		synctest.Wait()
		s.Conns()[0].Drain(nil)
		began := time.Now()
		expectAll(t, c, "")
		if took := time.Since(began); took > 10*time.Millisecond {
			t.Errorf("left after %v", took)
		}
		s.checkEnd(t, levee.Drained)
	})
}

func TestAPanicCostsOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := serve(t, l, &levee.Server{Handler: frame.Handler(frame.Lines(0), func(w *frame.Writer, line []byte) error {
			if string(line) == "panic" {
				panic("as told")
			}
			return w.Write(line)
		})})
		bad, good := dial(t, l), dial(t, l)
		send(t, bad, "panic\n")
		_, _ = io.ReadAll(bad)
		send(t, good, "one\n")
		expect(t, good, "one\n")
		s.checkEnd(t, levee.HandlerPanic)
	})
}

func TestKillEndsAConnectionWithinAMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := start(t, &levee.Server{Handler: frame.Handler(frame.Lines(0), echo)})
		send(t, c, "hal")
		synctest.Wait()
		s.Conns()[0].Kill(nil)
		s.checkEnd(t, levee.Killed)
	})
}

func TestTheWriterKnowsTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := start(t, &levee.Server{Handler: frame.Handler(frame.Lines(0), func(w *frame.Writer, _ []byte) error {
			return w.Write([]byte(w.Conn().RemoteAddr().String()))
		})})
		send(t, c, "who am I?\n")
		expect(t, c, c.LocalAddr().String()+"\n")
	})
}

func TestMessagesOverTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := leveetest.NewCA(t)
		c, s := start(t, &levee.Server{
			Handler:   frame.Handler(frame.Uint32(nil, 1<<20), echo),
			TLSConfig: ca.ServerConfig("localhost"),
		})
		client := tls.Client(c, ca.ClientConfig("localhost"))
		codec := frame.Uint32(nil, 1<<20)
		messages := [][]byte{[]byte("a"), nil, bytes.Repeat([]byte("b"), 1<<20), []byte("c")}
		go func() {
			_ = frame.Write(client, codec, messages...)
			_ = client.CloseWrite()
		}()
		r := frame.NewReader(client, codec)
		for _, want := range messages {
			if got, err := r.Read(); !bytes.Equal(got, want) || err != nil {
				t.Fatalf("read %d bytes, %v, want %d", len(got), err, len(want))
			}
		}
		if _, err := r.Read(); err != io.EOF {
			t.Errorf("Read: %v, want EOF", err)
		}
		client.Close()
		s.checkEnd(t, levee.ClientClosed)
	})
}

func TestMessagesOverASocketOfTheKernels(t *testing.T) {
	l, err := levee.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l, &levee.Server{Handler: frame.Handler(frame.Lines(0), echo)})
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	requests := numbered(100_000)
	for range 3 { // between them the handler waits
		go func() { _, _ = io.WriteString(c, requests) }()
		expect(t, c, requests)
	}
	c.(*net.TCPConn).CloseWrite()
	expectAll(t, c, "")
}
