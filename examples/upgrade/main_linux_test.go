package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// asProgram has the test's binary be the program: in the first process, and in the one that this starts.
const asProgram = "EXAMPLE_UPGRADE_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestAConnectionGoesOnInTheNextProcess: started, replaced by SIGUSR2, and told to leave by SIGTERM.
func TestAConnectionGoesOnInTheNextProcess(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "socket")
	first := exec.Command(program, "unix:"+socket)
	first.Env = append(os.Environ(), asProgram+"=yes")
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { first.Process.Kill() })

	client := dial(t, socket)
	if pid, line := client.say(t, "hello"); pid != first.Process.Pid || line != 1 {
		t.Fatalf("line %d is answered by process %d, want 1 by %d", line, pid, first.Process.Pid)
	}
	if err := first.Process.Signal(syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	if err := first.Wait(); err != nil { // it ends when nobody is left
		t.Fatalf("the first process: %v", err)
	}
	second, line := client.say(t, "still there?")
	if second == first.Process.Pid || line != 2 {
		t.Errorf("line %d is answered by process %d, want 2 by the next process", line, second)
	}
	t.Cleanup(func() { syscall.Kill(second, syscall.SIGKILL) })
	if pid, line := dial(t, socket).say(t, "a newcomer"); pid != second || line != 1 {
		t.Errorf("a newcomer's line %d is answered by process %d, want 1 by %d", line, pid, second)
	}

	if err := syscall.Kill(second, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(client.lines); len(rest) > 0 || err != nil { // it waits in Next, so it leaves at once
		t.Errorf("at the end came %q, %v", rest, err)
	}
}

type visitor struct {
	net.Conn
	lines *bufio.Reader
}

// dial waits until the server listens.
func dial(t *testing.T, socket string) *visitor {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		c, err := net.Dial("unix", socket)
		if err == nil {
			t.Cleanup(func() { c.Close() })
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			return &visitor{c, bufio.NewReader(c)}
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// say returns which process has answered, and which line of the connection it was there.
func (v *visitor) say(t *testing.T, what string) (pid, line int) {
	t.Helper()
	fmt.Fprintln(v, what)
	answer, err := v.lines.ReadString('\n')
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if _, err := fmt.Sscanf(answer, "process %d, line %d: ", &pid, &line); err != nil {
		t.Fatalf("%q: %v", answer, err)
	}
	return pid, line
}
