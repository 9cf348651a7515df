package main

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/frame"
	"github.com/levee-net/levee/leveetest"
)

// TestWhoKnowsThePasswordIsServed, and each connection leaves a line in the log.
func TestWhoKnowsThePasswordIsServed(t *testing.T) {
	for says, want := range map[string]struct{ answer, logged string }{
		"sesame\none\n": {"ONE\n", "read=11 written=4 err=<nil>"},
		"simsalabim\n":  {"", `err="wrong password"`},
	} {
		synctest.Test(t, func(t *testing.T) {
			var lines bytes.Buffer
			network := leveetest.Listen()
			leveetest.Serve(t, newServer(slog.New(slog.NewTextHandler(&lines, nil))), network)
			if answer := ask(t, network, says); answer != want.answer {
				t.Errorf("%q is answered %q, want %q", says, answer, want.answer)
			}
			synctest.Wait()
			if !strings.Contains(lines.String(), want.logged) || !strings.Contains(lines.String(), "client=127.0.0.1:") {
				t.Errorf("the log says %q, want %q in it", lines.String(), want.logged)
			}
		})
	}
}

// TestWhoSaysNothingIsNotWaitedFor beyond five seconds.
func TestWhoSaysNothingIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := leveetest.Listen()
		leveetest.Serve(t, newServer(slog.New(slog.DiscardHandler)), network)
		client, err := network.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		start := time.Now()
		if _, err := client.Read(make([]byte, 1)); err != io.EOF || time.Since(start) != 5*time.Second {
			t.Errorf("%v after %v, want EOF after 5s", err, time.Since(start))
		}
	})
}

// TestAStepperStaysOnItsLoop: with timed around it, a connection over TCP is served by an event loop, where there are such.
func TestAStepperStaysOnItsLoop(t *testing.T) {
	said := make(lines, 10)
	slow := frame.Handler(frame.Lines(100), func(w *frame.Writer, line []byte) error {
		<-time.After(2 * time.Millisecond)
		return w.Write([]byte(w.Conn().Story().Engine))
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	leveetest.Serve(t, &levee.Server{Handler: levee.Chain(slow, timed(slog.New(slog.NewTextHandler(said, nil)), time.Millisecond))}, listener)
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	io.WriteString(client, "who serves?\n")
	client.(*net.TCPConn).CloseWrite()
	answer, _ := io.ReadAll(client)
	want := map[bool]string{true: "loop\n", false: "goroutine\n"}[runtime.GOOS == "linux"]
	if warning := <-said; string(answer) != want || !strings.Contains(warning, "msg=slow") {
		t.Errorf("served by %q, want %q; the log says %q", answer, want, warning)
	}
}

// lines are those of a log.
type lines chan string

func (l lines) Write(line []byte) (int, error) {
	l <- string(line)
	return len(line), nil
}

// ask sends a request and returns all that comes.
func ask(t *testing.T, network *leveetest.Listener, request string) string {
	t.Helper()
	client, err := network.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	io.WriteString(client, request)
	client.CloseWrite()
	answer, err := io.ReadAll(client)
	if err != nil {
		t.Fatal(err)
	}
	return string(answer)
}
