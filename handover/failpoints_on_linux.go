//go:build failpoints

package handover

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// With the build tag failpoints, LEVEE_FAILPOINT=role:step:action has a process come to harm, once. The role is old or
// new; a step is a deed's word, and with a + behind it the moment after it; for the first moments of either there are
// started and begin. No release has any of this.
const failpoint = "LEVEE_FAILPOINT"

var failed atomic.Bool

// fail does what the environment asks for at a step.
func fail(role, step string, l *link) {
	where, action, ok := cutLast(os.Getenv(failpoint), ":")
	if !ok || where != role+":"+step || failed.Swap(true) {
		return
	}
	fmt.Printf("{\"pid\":%d,\"what\":\"harm\"}\n", os.Getpid()) // so that a test knows
	failures[action](l)
}

func cutLast(s, separator string) (before, after string, found bool) {
	i := strings.LastIndex(s, separator)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(separator):], true
}

var failures = map[string]func(*link){
	"sigkill": func(*link) { signalOwn(unix.SIGKILL) },
	"sigstop": func(*link) { signalOwn(unix.SIGSTOP) },
	"hang":    func(*link) { time.Sleep(3 * time.Second) },
	"slow":    func(*link) { time.Sleep(300 * time.Millisecond) },
	"garbage": func(l *link) { _, _ = l.conn.Write([]byte("this is not the protocol at all")) },
	"emfile":  func(*link) { runOutOfFiles(500 * time.Millisecond) },
	"full":    func(l *link) { fillUp(l) },
}

func signalOwn(sig unix.Signal) {
	_ = unix.Kill(os.Getpid(), sig)
	time.Sleep(20 * time.Millisecond) // another thread may have to be told first
}

// runOutOfFiles has no descriptor be had for a time.
func runOutOfFiles(duration time.Duration) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		panic(err)
	}
	none := limit
	none.Cur = 3
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		panic(err)
	}
	time.AfterFunc(duration, func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) })
}

// fillUp sends frames that nobody knows until the socket is full.
func fillUp(l *link) {
	message := frame{kind: 200, optional: true, body: make([]byte, 1000)}.appendTo(nil)
	sock, err := l.conn.SyscallConn()
	if err != nil {
		panic(err)
	}
	_ = sock.Write(func(fd uintptr) bool {
		for range 10_000 {
			if unix.Send(int(fd), message, unix.MSG_DONTWAIT) != nil {
				break
			}
		}
		return true
	})
}
