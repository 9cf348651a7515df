package levee_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// What a goroutine makes of a Pacer, to the millisecond: in virtual time.

// takes are the ways in which a handler may take n bytes.
var takes = map[string]func(c *levee.Conn, n int) error{
	"Read": func(c *levee.Conn, n int) error {
		_, err := io.ReadFull(c, make([]byte, n))
		return err
	},
	"Peek": func(c *levee.Conn, n int) error {
		_, err := c.Peek(n)
		return err
	},
	"Next": func(c *levee.Conn, n int) error {
		for b := make([]byte, n); n > 0 && c.Next(); {
			m, err := c.Read(b[:min(n, c.Buffered())])
			if n -= m; err != nil {
				return err
			}
		}
		return nil
	},
	"WriteTo": func(c *levee.Conn, n int) error {
		if m, err := c.WriteTo(io.Discard); err != nil || m != int64(n) {
			return errors.Join(err, io.ErrUnexpectedEOF)
		}
		return nil
	},
}

// gives are the ways in which it may give b.
var gives = map[string]func(c *levee.Conn, b []byte) error{
	"Write": func(c *levee.Conn, b []byte) error {
		_, err := c.Write(b)
		return err
	},
	"ReadFrom": func(c *levee.Conn, b []byte) error {
		_, err := c.ReadFrom(bytes.NewReader(b))
		return err
	},
	"ReadFrom what gives little": func(c *levee.Conn, b []byte) error {
		_, err := c.ReadFrom(sevenBytes{bytes.NewReader(b)})
		return err
	},
	"Write in small pieces": func(c *levee.Conn, b []byte) error {
		for piece := range bytes.Lines(b) {
			if _, err := c.Write(piece); err != nil {
				return err
			}
		}
		return nil
	},
}

// sevenBytes reads so many at a time.
type sevenBytes struct{ r io.Reader }

func (r sevenBytes) Read(p []byte) (int, error) { return r.r.Read(p[:min(len(p), 7)]) }

const (
	pacedBytes = 10_000
	pacedRate  = 1000.
	pacedChunk = 100
)

// pacedText is so many bytes, in short lines.
var pacedText = []byte(strings.Repeat("nineteen characters\n", pacedBytes/20))

// slowBucket lets nothing go at once: what comes is exact, but for a chunk.
func slowBucket() *bucket {
	return &bucket{rate: pacedRate, chunk: pacedChunk, at: time.Now()}
}

// checkPaced wants a transfer to have taken its time, and TLS no more than its due.
func checkPaced(t *testing.T, took time.Duration, client net.Conn) {
	t.Helper()
	least := time.Duration((pacedBytes - pacedChunk) / pacedRate * float64(time.Second))
	most := time.Duration(pacedBytes / pacedRate * float64(time.Second))
	if _, plain := client.(*leveetest.Conn); !plain {
		most *= 5 // 22 bytes around the 7 of a write of its own
	}
	if took < least || took > most+5*time.Millisecond {
		t.Errorf("took %v, want %v to %v", took, least, most)
	}
}

func TestWhatIsReadTakesItsTime(t *testing.T) {
	for name, take := range takes {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
				took := make(chan time.Duration, 1)
				dial, ends := serve(&levee.Server{Handler: does(func(c *levee.Conn) error {
					if _, err := c.Write([]byte("x")); err != nil {
						return err
					}
					c.Pace(slowBucket(), nil) // before anything has come that may be read ahead
					began := time.Now()
					err := take(c, pacedBytes)
					took <- time.Since(began)
					return err
				})})
				client := dial()
				want(t, client, "x")
				_, err := client.Write(pacedText)
				if err = errors.Join(err, client.CloseWrite()); err != nil {
					t.Fatal(err)
				}
				checkPaced(t, <-took, client)
				if end := <-ends; end.Err != nil {
					t.Errorf("ended as %v, %v", end.Reason, end.Err)
				}
			})
		})
	}
}

func TestWhatIsWrittenTakesItsTime(t *testing.T) {
	for name, give := range gives {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
				dial, ends := serve(&levee.Server{Handler: does(func(c *levee.Conn) error {
					c.Pace(nil, slowBucket())
					return give(c, pacedText)
				})})
				client := dial()
				began := time.Now()
				got, err := io.ReadAll(client)
				if err != nil || !bytes.Equal(got, pacedText) {
					t.Errorf("read %d bytes, %v", len(got), err)
				}
				checkPaced(t, time.Since(began), client)
				expectReason(t, ends, levee.HandlerClosed)
			})
		})
	}
}

// pacedForAnHour makes its connection wait after the first byte.
func pacedForAnHour(c *levee.Conn) error {
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	pacer := lull{64 << 10, time.Hour} // before anything has come that may be read ahead
	c.Pace(pacer, pacer)
	_, err := c.Read(make([]byte, 1))
	if err == nil {
		_, err = c.Write([]byte("x"))
	}
	return err
}

// beginToWait is the client's part of that.
func beginToWait(t *testing.T, client net.Conn) {
	t.Helper()
	want(t, client, "x")
	send(t, client, "x")
	want(t, client, "x")
}

// The waits of a handler whose connection has to wait for its Pacer.
var pacedWaits = map[string]func(c *levee.Conn) error{
	"Write": func(c *levee.Conn) error {
		_, err := c.Write([]byte("x"))
		return err
	},
	"ReadFrom": func(c *levee.Conn) error {
		_, err := c.ReadFrom(strings.NewReader("x"))
		return err
	},
	"Read": waysToWait["Read"], "Peek": waysToWait["Peek"], "Next": waysToWait["Next"], "WriteTo": waysToWait["WriteTo"],
}

func TestAHandlersDeadlineEndsItsWaitForAPacer(t *testing.T) {
	for name, wait := range pacedWaits {
		for _, during := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
					took := make(chan time.Duration, 1)
					dial, _ := serve(&levee.Server{Handler: does(func(c *levee.Conn) error {
						if err := pacedForAnHour(c); err != nil {
							return err
						}
						began := time.Now()
						if during {
							time.AfterFunc(time.Minute, func() { c.SetDeadline(time.Now().Add(-time.Second)) })
						} else {
							c.SetDeadline(began.Add(time.Minute))
						}
						err := wait(c)
						took <- time.Since(began)
						if !errors.Is(err, os.ErrDeadlineExceeded) {
							t.Errorf("it returned %v, want a timeout", err)
						}
						return nil
					})})
					client := dial()
					beginToWait(t, client)
					send(t, client, "yz")
					if got := <-took; got != time.Minute {
						t.Errorf("it took %v, want a minute", got)
					}
				})
			})
		}
	}
}

func TestWhateverEndsAConnectionEndsItsWaitForAPacer(t *testing.T) {
	for name, wait := range pacedWaits {
		for way, end := range map[string]func(c *levee.Conn){
			"Kill":   func(c *levee.Conn) { c.Kill(nil) },
			"Close":  func(c *levee.Conn) { c.Close() },
			"Server": func(c *levee.Conn) { c.Server().Close() },
			"Drain":  func(c *levee.Conn) { c.Drain(nil) },
		} {
			if way == "Drain" && name != "Next" {
				continue // it asks for no more than the ends of requests
			}
			t.Run(name+" "+way, func(t *testing.T) {
				inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
					failed := make(chan error, 1)
					dial, ends := serve(&levee.Server{Handler: does(func(c *levee.Conn) error {
						if err := pacedForAnHour(c); err != nil {
							return err
						}
						time.AfterFunc(time.Minute, func() { end(c) })
						if way == "Drain" {
							if c.Next() {
								t.Error("there was a request")
							}
							return nil
						}
						err := wait(c)
						failed <- err
						return err
					})})
					client := dial()
					began := time.Now()
					beginToWait(t, client)
					<-ends
					if took := time.Since(began); took < time.Minute || took > time.Minute+time.Second {
						t.Errorf("it took %v, want a minute", took)
					}
					if way != "Drain" {
						if err := <-failed; !errors.Is(err, net.ErrClosed) {
							t.Errorf("it returned %v", err)
						}
					}
				})
			})
		}
	}
}

func TestAPacedConnectionIsIdleOnceItsWaitIsOver(t *testing.T) {
	for name, wait := range waysToWait {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
				dial, ends := serve(&levee.Server{IdleTimeout: time.Minute, Handler: does(func(c *levee.Conn) error {
					if err := pacedForAnHour(c); err != nil {
						return err
					}
					return wait(c)
				})})
				client := dial()
				began := time.Now()
				beginToWait(t, client)
				expectEndAt(t, ends, levee.IdleTimeout, began, time.Hour+time.Minute)
			})
		})
	}
}

func TestAPeerThatTakesNothingStallsOnceTheWaitIsOver(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		dial, ends := serve(&levee.Server{WriteStallTimeout: time.Minute, IdleTimeout: time.Minute, Handler: does(func(c *levee.Conn) error {
			c.Pace(nil, lull{1 << 20, time.Hour})
			if _, err := c.Write([]byte("x")); err != nil {
				return err
			}
			_, err := c.Write(make([]byte, 1<<20))
			return err
		})})
		client := dial()
		began := time.Now()
		want(t, client, "x")
		expectReason(t, ends, levee.WriteStalled)
		if took := time.Since(began); took < time.Hour+time.Minute || took > 20*time.Hour {
			t.Errorf("it stalled after %v", took)
		}
	})
}

func TestAnArrivalThatIsPacedIsHeldToItsDeadline(t *testing.T) {
	ca := leveetest.NewCA(t)
	synctest.Test(t, func(t *testing.T) {
		srv := &levee.Server{TLSConfig: ca.ServerConfig("localhost"), MaxHandshakes: 1, Handler: echoes}
		paced := pacingOf(srv)
		dial, ends := inMemory(t, srv)
		paced.next(false, lull{100, time.Hour})
		slow := dial()
		began := time.Now()
		go handshake(slow) // ends with the connection
		synctest.Wait()
		if took := time.Since(began); took != 0 {
			t.Fatalf("the first part of a handshake took %v", took)
		}
		other := handshaken(t, dial(), ca.ClientConfig("localhost")) // one that waits holds nobody up
		send(t, other, "x")
		want(t, other, "x")
		if took := time.Since(began); took > time.Second {
			t.Errorf("somebody else's handshake took %v", took)
		}
		expectEndAt(t, ends, levee.ArrivalTimeout, began, 10*time.Second)
	})
}
