package levee_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// bulkBucket has bulk copied at 20 MB/s, of which 1 MB goes at once.
func bulkBucket(chunk int) *bucket {
	return &bucket{rate: 20e6, burst: 1e6, tokens: 1e6, chunk: chunk, at: time.Now()}
}

func TestPacedBulkIsCopiedInPiecesWhereverItGoes(t *testing.T) {
	const size = 6 << 20
	b := payload(size)
	name := filepath.Join(t.TempDir(), "bulk")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, way := range []struct {
		name string
		file bool // is where it comes from
		move func(c *levee.Conn, far *net.TCPConn, pacer levee.Pacer) error
	}{
		{"to a socket", false, func(c *levee.Conn, far *net.TCPConn, pacer levee.Pacer) error {
			c.Pace(pacer, nil)
			_, err := io.Copy(far, c)
			return errors.Join(err, far.CloseWrite())
		}},
		{"from a socket", false, func(c *levee.Conn, far *net.TCPConn, pacer levee.Pacer) error {
			c.Pace(nil, pacer)
			_, err := io.Copy(c, far)
			return err
		}},
		{"there and back", false, func(c *levee.Conn, _ *net.TCPConn, pacer levee.Pacer) error {
			c.Pace(pacer, bulkBucket(1<<20))
			_, err := io.Copy(c, c)
			return err
		}},
		{"from a file", true, func(c *levee.Conn, _ *net.TCPConn, pacer levee.Pacer) error {
			f, err := os.Open(name)
			if err != nil {
				return err
			}
			defer f.Close()
			c.Pace(nil, pacer)
			_, err = io.Copy(c, f)
			return err
		}},
		{"a part of a file at a time", true, func(c *levee.Conn, _ *net.TCPConn, pacer levee.Pacer) error {
			f, err := os.Open(name)
			if err != nil {
				return err
			}
			defer f.Close()
			c.Pace(nil, pacer)
			for err == nil {
				_, err = io.CopyN(c, f, 1_000_003)
			}
			if err == io.EOF {
				err = nil
			}
			return err
		}},
	} {
		for _, chunk := range []int{100 << 10, 3000} {
			t.Run(way.name, func(t *testing.T) {
				leveetest.CheckLeaks(t)
				upstream := listenTCP(t)
				pacer := bulkBucket(chunk)
				l := listenTCP(t)
				serve(t, &levee.Server{Handler: handle(func(ctx context.Context, c *levee.Conn) error {
					var d net.Dialer
					far, err := d.DialContext(ctx, "tcp", upstream.Addr().String())
					if err != nil {
						return err
					}
					defer far.Close()
					return way.move(c, far.(*net.TCPConn), pacer)
				})}, l)
				near := dialTCP(t, l)
				far, err := upstream.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer far.Close()
				from, to := near, near
				switch way.name {
				case "to a socket":
					to = far
				case "from a socket":
					from = far
				}
				began := time.Now()
				go func() { // ends with the writing, or the connection
					if !way.file {
						_, _ = from.Write(b)
					}
					_ = from.(*net.TCPConn).CloseWrite()
				}()
				got, err := io.ReadAll(to)
				if err != nil {
					t.Error(err)
				}
				wantBytes(t, got, b)
				const least = 200 * time.Millisecond // 265, but for what the machine adds to the first
				if took := time.Since(began); took < least {
					t.Errorf("took %v, less than %v", took, least)
				}
				most := pacer.largest()
				if most > chunk {
					t.Errorf("%d bytes at once, want no more than %d", most, chunk)
				}
				if chunk > 32<<10 && most <= 32<<10 { // which is the most that is copied
					t.Errorf("no more than %d bytes at once: nothing was moved by the kernel", most)
				}
			})
		}
	}
}
