package levee_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// A loop takes a short read for all that there was. These are the cases where it is not.

// holding serves a line protocol whose first Step waits for the test, so that what
// the client sends meanwhile is all there at the next read.
func holding(t *testing.T, perConn bool, l net.Listener) (called <-chan struct{}, goOn chan<- struct{}) {
	t.Helper()
	run, called2, goOn2 := untilTold()
	serve(t, &levee.Server{Handler: &lines{commands: map[string]command{"wait": run}}, GoroutinePerConn: perConn}, l)
	return called2, goOn2
}

func TestBytesBehindUrgentDataAreServed(t *testing.T) {
	for name, perConn := range map[string]bool{"loop": false, "goroutine": true} {
		t.Run(name, func(t *testing.T) {
			leveetest.CheckLeaks(t)
			l := listenTCP(t)
			called, goOn := holding(t, perConn, l)
			c := dialTCP(t, l)
			send(t, c, "wait\n")
			receive(t, called)
			send(t, c, "echo a\n")
			sock, err := c.(*net.TCPConn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			if e := sock.Control(func(fd uintptr) { err = unix.Send(int(fd), []byte("!"), unix.MSG_OOB) }); e != nil || err != nil {
				t.Fatal(e, err)
			}
			send(t, c, "echo b\n")
			close(goOn)
			want(t, c, "done\na\nb\n")
		})
	}
}

func TestBytesBehindDescriptorsAreServed(t *testing.T) {
	for name, perConn := range map[string]bool{"loop": false, "goroutine": true} {
		t.Run(name, func(t *testing.T) {
			leveetest.CheckLeaks(t)
			path := filepath.Join(t.TempDir(), "s")
			l, err := levee.Listen(context.Background(), "unix:"+path)
			if err != nil {
				t.Fatal(err)
			}
			called, goOn := holding(t, perConn, l)
			conn, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			c := conn.(*net.UnixConn)
			send(t, c, "wait\n")
			receive(t, called)
			send(t, c, "echo ")
			rights := unix.UnixRights(int(os.Stderr.Fd()))
			if _, _, err := c.WriteMsgUnix([]byte("a"), rights, nil); err != nil {
				t.Fatal(err)
			}
			send(t, c, "b\n")
			close(goOn)
			want(t, c, "done\nab\n")
		})
	}
}
