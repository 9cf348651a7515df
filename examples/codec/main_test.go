package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"testing"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/frame"
	"github.com/levee-net/levee/leveetest"
)

// TestMessagesAreAnsweredBackwards: on a real socket, with two of them together.
func TestMessagesAreAnsweredBackwards(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	leveetest.Serve(t, &levee.Server{Handler: frame.Handler(netstrings(1000), backwards)}, listener)
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	io.WriteString(client, "5:hello,3:you,0:,")
	client.(*net.TCPConn).CloseWrite()
	if answer, err := io.ReadAll(client); err != nil || string(answer) != "5:olleh,3:uoy,0:," {
		t.Errorf("got %q, %v", answer, err)
	}
}

var whole = regexp.MustCompile(`^(0|[1-9][0-9]*):`)

// FuzzDecode: what Decode makes of bytes is what a regular expression does, which sees all of them at once; and what it says
// of a beginning it does not take back.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{"5:hello,", "0:,3:abc,", "05:hello,", ":", "12", "1000:", "9999", "00", "3:abcd", "-1:,", "x"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		codec := netstrings(100)
		message, taken, err := codec.Decode(b)
		if length := whole.FindSubmatch(b); length != nil {
			size, _ := strconv.Atoi(string(length[1]))
			rest := b[len(length[0]):]
			switch {
			case len(length[1]) > 3 || size > 100:
				if err == nil {
					t.Fatalf("%q: %d bytes are not too large", b, size)
				}
			case len(rest) <= size:
				if taken != 0 || err != nil {
					t.Fatalf("%q: took %d, %v; want to wait", b, taken, err)
				}
			case rest[size] == ',':
				if !bytes.Equal(message, rest[:size]) || taken != len(length[0])+size+1 || err != nil {
					t.Fatalf("%q: got %q, %d, %v", b, message, taken, err)
				}
			case err == nil:
				t.Fatalf("%q: no comma, and no error", b)
			}
		} else if taken != 0 {
			t.Fatalf("%q: took %d bytes of what is no netstring", b, taken)
		}
		for i := range b { // as it comes in
			early, n, sooner := codec.Decode(b[:i])
			if n > 0 && (n != taken || !bytes.Equal(early, message)) || sooner != nil && err == nil {
				t.Fatalf("%q: %q, %v; but of its beginning %q: %q, %v", b, message, err, b[:i], early, sooner)
			}
		}
		if taken > 0 {
			again, err := codec.Append(nil, message)
			if err != nil || !bytes.Equal(again, b[:taken]) {
				t.Fatalf("%q is written as %q, %v", b[:taken], again, err)
			}
		}
	})
}

// TestNothingLongerThanMaxIsWaitedFor: a length that promises too much is refused when it shows.
func TestNothingLongerThanMaxIsWaitedFor(t *testing.T) {
	codec := netstrings(100)
	for _, size := range []int{101, 999, 1000, 1 << 40} {
		if _, _, err := codec.Decode(fmt.Appendf(nil, "%d:", size)); err == nil {
			t.Errorf("a length of %d is not refused", size)
		}
	}
	if _, err := codec.Append(nil, make([]byte, 101)); err == nil {
		t.Error("101 bytes are written, and nobody could read them")
	}
}
