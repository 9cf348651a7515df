package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/levee-net/levee/frame"
	"github.com/levee-net/levee/leveetest"
)

// serve returns the port of a server.
func serve(t *testing.T) (port string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	leveetest.Serve(t, newServer(), listener)
	_, port, _ = net.SplitHostPort(listener.Addr().String())
	return port
}

// run runs a client and returns what it says.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("skipped: %s is not installed", name)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// TestRedisCLI: the real client.
func TestRedisCLI(t *testing.T) {
	port := serve(t)
	for _, try := range []struct{ command, want string }{
		{"ping", "PONG"},
		{"ping hello", "hello"},
		{"get greeting", ""},
		{"set greeting hello", "OK"},
		{"get greeting", "hello"},
		{"del greeting", "1"},
		{"del greeting", "0"},
		{"flushall", "ERR unknown command, or not its number of arguments"},
	} {
		if got := run(t, "redis-cli", append([]string{"-p", port}, strings.Fields(try.command)...)...); got != try.want {
			t.Errorf("%s: %q, want %q", try.command, got, try.want)
		}
	}
}

// TestRedisBenchmark: with pipelining, so that commands come together and in pieces.
func TestRedisBenchmark(t *testing.T) {
	out := run(t, "redis-benchmark", "-p", serve(t), "-t", "ping,set,get", "-n", "5000", "-c", "20", "-P", "8", "-d", "300", "-r", "100", "--csv")
	for _, test := range []string{"PING_INLINE", "PING_MBULK", "SET", "GET"} {
		if !strings.Contains(out, `"`+test+`"`) {
			t.Errorf("no result for %s in\n%s", test, out)
		}
	}
}

// TestWhatIsNoCommandEndsTheConnection: after the answers to what came before it.
func TestWhatIsNoCommandEndsTheConnection(t *testing.T) {
	client, err := net.Dial("tcp", "127.0.0.1:"+serve(t))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	io.WriteString(client, "PING\r\n*1\r\n$4\r\nPING\r\n*1\r\n:4\r\n")
	if answer, err := io.ReadAll(client); err != nil || string(answer) != "+PONG\r\n+PONG\r\n" {
		t.Errorf("got %q, %v", answer, err)
	}
}

// FuzzParse: a command is the same however it comes in, and its arguments, written anew, are it again.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"PING\r\n", "*1\r\n$4\r\nPING\r\n", "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$0\r\n\r\n", "*0\r\n", "*-1\r\n",
		"*99\r\n", "*1\r\n$99999999999", "*1\r\n$4\r\nPINGxx", "*2\r\n$1\r\na\r\n:1\r\n", "*+1\r\n$01\r\na\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var args [][]byte
		n, err := parse(b, func(arg []byte) { args = append(args, arg) })
		if err != nil && (n != 0 || !errors.Is(err, frame.ErrMalformed) && !errors.Is(err, frame.ErrTooLarge)) {
			t.Fatalf("%q: %d, %v", b, n, err)
		}
		for i := range b {
			if sooner, early := parse(b[:i], func([]byte) {}); sooner != 0 && sooner != n || early != nil && err == nil {
				t.Fatalf("%q: %d, %v; but of its beginning %q: %d, %v", b, n, err, b[:i], sooner, early)
			}
		}
		if n == 0 {
			return
		}
		again := encode(args)
		var same [][]byte
		m, err := parse(again, func(arg []byte) { same = append(same, arg) })
		if m != len(again) || err != nil || !slices.EqualFunc(args, same, bytes.Equal) {
			t.Fatalf("%q is %q, which written as %q is %q, %v", b[:n], args, again, same, err)
		}
	})
}

func encode(args [][]byte) []byte {
	b := []byte("*" + strconv.Itoa(len(args)) + "\r\n")
	for _, arg := range args {
		b = append(b, "$"+strconv.Itoa(len(arg))+"\r\n"...)
		b = append(append(b, arg...), "\r\n"...)
	}
	return b
}
