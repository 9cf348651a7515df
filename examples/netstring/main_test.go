package main

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/frame"
	"github.com/levee-net/levee/leveetest"
)

func TestEachNetstringIsAnsweredWithItsLength(t *testing.T) {
	listener := leveetest.Listen()
	srv := &levee.Server{Handler: frame.Handler(netstring{100}, measure)}
	go func() { _ = srv.Serve(context.Background(), listener) }()
	t.Cleanup(func() { _ = srv.Close() })
	for sent, want := range map[string]string{
		"5:hello,":        "1:5,",
		"0:,3:abc,":       "1:0,1:3,",
		"5:hello":         "",
		"5:hello;":        "",
		"x:hello,":        "",
		"101:":            "",
		"99999999999999:": "",
	} {
		conn, err := listener.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, sent)
		_ = conn.CloseWrite()
		got, _ := io.ReadAll(conn)
		if string(got) != want {
			t.Errorf("%q: %q, want %q", sent, got, want)
		}
	}
}

func FuzzNetstring(f *testing.F) {
	f.Add([]byte("5:hello,"))
	f.Add([]byte("5:hel"))
	f.Add([]byte("007:1234567,"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := netstring{100}
		message, size, err := n.Decode(b)
		switch {
		case err != nil || size == 0:
			return
		case size > len(b) || len(message) > 100:
			t.Fatalf("%q: %d bytes, of them %q", b, size, message)
		}
		again, err := n.Append(nil, message)
		if err != nil {
			t.Fatal(err)
		}
		if back, _, err := n.Decode(again); err != nil || !bytes.Equal(back, message) {
			t.Errorf("%q came back as %q, %v", message, back, err)
		}
	})
}
