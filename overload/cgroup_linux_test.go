package overload

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// inCgroup runs the test again as a process of its own in a cgroup with so much memory, or returns false if
// it is that process.
func inCgroup(t *testing.T, limit int) (outside bool) {
	t.Helper()
	if os.Getenv("OVERLOAD_IN_CGROUP") != "" {
		return false
	}
	startInCgroup(t, limit).wait(t)
	return true
}

// A child is a process of the same test in a cgroup of its own.
type child struct {
	dir               string
	cmd               *exec.Cmd
	in                io.WriteCloser
	out               *bufio.Scanner
	most, mostBuffers int // bytes, as watch has seen
}

// startInCgroup skips the test where there is none to be had.
func startInCgroup(t *testing.T, limit int, env ...string) *child {
	t.Helper()
	const memory = "/sys/fs/cgroup/memory"
	dir, err := os.MkdirTemp(memory, "levee-test-")
	if err != nil {
		t.Skip("no cgroup of version 1 to be had here:", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	// The kernel counts buffers of sockets once there is a limit on them.
	for name, n := range map[string]int{"memory.limit_in_bytes": limit, "memory.kmem.tcp.limit_in_bytes": 8 << 30} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strconv.Itoa(n)), 0o600); err != nil {
			t.Skip("the cgroup takes no limit:", err)
		}
	}
	return startProcess(t, dir, append(env, "OVERLOAD_IN_CGROUP="+dir)...)
}

// startProcess starts a process, which enters the cgroup first if there is one.
func startProcess(t *testing.T, dir string, env ...string) *child {
	t.Helper()
	c := &child{dir: dir}
	c.cmd = exec.CommandContext(t.Context(), "/bin/sh", "-c", `test -z "$0" || echo $$ >"$0/cgroup.procs" && exec "$@"`, dir,
		os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1")
	c.cmd.Env = append(os.Environ(), env...)
	c.cmd.Stderr = os.Stderr
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewScanner(out)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill() // if it is still there
		_ = c.cmd.Wait()
	})
	return c
}

// line returns the address that the child says it listens on.
func (c *child) line(t *testing.T) string {
	t.Helper()
	for c.out.Scan() {
		if address, ok := strings.CutPrefix(c.out.Text(), "listening "); ok {
			return address
		}
	}
	t.Fatal("the child has ended:", c.out.Err())
	return ""
}

// wait waits for the child's end, and tells what it said.
func (c *child) wait(t *testing.T) {
	t.Helper()
	for c.out.Scan() {
		t.Log(c.out.Text())
	}
	if err := c.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

// stop has the child end, and sees to it that it was not killed.
func (c *child) stop(t *testing.T) {
	t.Helper()
	_ = c.in.Close()
	c.wait(t)
}

// watch notes the most memory that is in use, until ctx ends.
func (c *child) watch(ctx context.Context) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		buffers := c.number("memory.kmem.tcp.usage_in_bytes")
		c.most = max(c.most, c.number("memory.usage_in_bytes")+buffers)
		c.mostBuffers = max(c.mostBuffers, buffers)
		<-tick.C
	}
}

func (c *child) number(file string) int {
	text, _ := os.ReadFile(filepath.Join(c.dir, file))
	n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return n
}
