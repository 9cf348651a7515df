package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// A screen is a terminal, that of tmux, in which a command runs.
type screen struct {
	t      *testing.T
	socket string
}

// newScreen runs a line of shell on a screen of that size.
func newScreen(t *testing.T, width, height int, line string) *screen {
	t.Helper()
	need(t, "tmux")
	s := &screen{t, filepath.Join(t.TempDir(), "tmux")}
	s.tmux("-f", "/dev/null", "new-session", "-d", "-x", strconv.Itoa(width), "-y", strconv.Itoa(height), line)
	t.Cleanup(func() {
		_ = exec.Command("tmux", "-S", s.socket, "kill-server").Run() // it is gone if the test ended it
	})
	return s
}

func (s *screen) tmux(args ...string) string {
	s.t.Helper()
	cmd := exec.Command("tmux", append([]string{"-S", s.socket}, args...)...)
	cmd.Env = append(os.Environ(), "LANG=C.UTF-8", "LC_ALL=", "SHELL=/bin/sh", "TMUX=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("tmux %q: %v: %s", args, err, out)
	}
	return strings.TrimSuffix(string(out), "\n")
}

// text is what the screen shows.
func (s *screen) text() string {
	s.t.Helper()
	return s.tmux("capture-pane", "-p")
}

func (s *screen) press(keys ...string) {
	s.t.Helper()
	s.tmux(append([]string{"send-keys"}, keys...)...)
}

// awaits waits until the screen shows the text.
func (s *screen) awaits(text string) {
	s.t.Helper()
	shown := ""
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.t.Logf("as it was to show %q, it showed\n%s", text, shown)
		}
	})
	eventually(s.t, fmt.Sprintf("the screen shows %q", text), func() bool {
		shown = s.text()
		return strings.Contains(shown, text)
	})
}

// other reports whether the command has a screen of its own, which is to go with it.
func (s *screen) other() bool {
	s.t.Helper()
	return s.tmux("display-message", "-p", "#{alternate_on}") == "1"
}

// quoted makes words of a shell's line.
func quoted(words ...string) string {
	for i, w := range words {
		words[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
	}
	return strings.Join(words, " ")
}

// adminAddress is what --admin takes.
func (p *process) adminAddress() string {
	p.t.Helper()
	return strings.TrimPrefix(p.admin(""), "http://")
}

// greeted is a connection on which so many bytes have been echoed.
func greeted(t *testing.T, address string, n int) net.Conn {
	t.Helper()
	c := dial(t, address)
	send(t, c, strings.Repeat("x", n))
	if _, err := io.ReadFull(c, make([]byte, n)); err != nil {
		t.Fatal(err)
	}
	return c
}

// ended waits for the other side to end the connection.
func ended(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the connection was not ended: %v", err)
	}
}

func TestTopShowsConnectionsAndKillsTheOneThatIsChosen(t *testing.T) {
	p := start(t, "serve", "-c", config(t, "", ""))
	quiet, busy := greeted(t, p.address(), 3), greeted(t, p.address(), 3000)
	s := newScreen(t, 80, 24, "echo before; "+quoted(levee, "top", "--admin", p.adminAddress())+"; echo after; exec sleep 60")
	s.awaits(busy.LocalAddr().String())
	s.awaits("2 open")
	if text := s.text(); !strings.Contains(text, quiet.LocalAddr().String()) || !strings.Contains(text, "q quit  k kill") || strings.Contains(text, "before") || !s.other() {
		t.Errorf("not all of it shows:\n%s", text)
	}

	s.press("k")
	s.awaits("of " + busy.LocalAddr().String() + "? y yes") // which has been sent the most, and so is the first
	s.press("y")
	s.awaits("was killed")
	ended(t, busy)
	s.awaits("1 open")
	if text := s.text(); strings.Contains(text, busy.LocalAddr().String()) {
		t.Errorf("it shows still:\n%s", text)
	}
	if err := echoesOn(quiet); err != nil {
		t.Errorf("the other is not served any more: %v", err)
	}

	s.press("/", "10.0.0.0/8", "Enter")
	s.awaits("no connection is like that")
	s.press("Escape")
	s.awaits(quiet.LocalAddr().String())
	s.tmux("resize-window", "-x", "120", "-y", "40")
	s.awaits("LISTENER PHASE")
	s.press("3")
	s.awaits("[3 listeners]")
	s.awaits(p.address())

	s.press("q")
	s.awaits("after")
	if text := s.text(); !strings.HasPrefix(text, "before\nafter\n") || s.other() {
		t.Errorf("the terminal is not as it was:\n%s", text)
	}
}

func TestTopGoesOnWhenTheLeveeIsBack(t *testing.T) {
	path := config(t, "", "")
	p := start(t, "serve", "-c", path)
	there := p.adminAddress()
	s := newScreen(t, 80, 24, quoted(levee, "top", "--every", "200ms", "--admin", there))
	s.awaits("serving")
	p.signal(os.Kill)
	p.wait()
	s.awaits("asking again: no levee answers at " + there)
	again := start(t, "serve", "-c", path, "--admin", there)
	c := greeted(t, again.address(), 1)
	s.awaits(c.LocalAddr().String())
	s.awaits("serving")
	if text := s.text(); strings.Contains(text, "gone") {
		t.Errorf("it still says that it is gone:\n%s", text)
	}
	again.signal(syscall.SIGTERM)
	s.awaits("no levee answers")
}

// TestTopEndsWithItsTerminal: who closes the window, or loses the connection, leaves nothing behind.
func TestTopEndsWithItsTerminal(t *testing.T) {
	p := start(t, "serve", "-c", config(t, "", ""))
	s := newScreen(t, 80, 24, "exec "+quoted(levee, "top", "--admin", p.adminAddress()))
	s.awaits("serving")
	pid := s.tmux("display-message", "-p", "#{pane_pid}")
	if exe, err := os.Readlink("/proc/" + pid + "/exe"); err != nil || exe != levee {
		t.Skipf("skipped: /proc does not say what runs (%s, %v)", exe, err)
	}
	s.tmux("kill-server")
	eventually(t, "it ends", func() bool {
		_, err := os.Readlink("/proc/" + pid + "/exe") // of one that nobody has waited for yet there is none
		return err != nil
	})
}

func TestOperatorsAskTheBinary(t *testing.T) {
	p := start(t, "serve", "-c", config(t, "", ""))
	there := p.adminAddress()
	ask := func(want int, args ...string) string {
		t.Helper()
		cmd := exec.Command(levee, append(args, "--admin", there)...)
		out, err := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Fatalf("%q: exit code %d, not %d (%v): %s", args, got, want, err, out)
		}
		return string(out)
	}
	contains := func(text, want string) {
		t.Helper()
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	first, second := greeted(t, p.address(), 10), greeted(t, p.address(), 20)
	contains(ask(0, "status"), "2 open")
	contains(ask(0, "conns"), first.LocalAddr().String())
	var page struct {
		Connections []struct {
			ID     uint64
			Client string
		}
	}
	if err := json.Unmarshal([]byte(ask(0, "conns", "--sort", "-out", "--json")), &page); err != nil || len(page.Connections) != 2 || page.Connections[0].Client != second.LocalAddr().String() {
		t.Fatalf("%v %+v", err, page)
	}
	id := strconv.FormatUint(page.Connections[0].ID, 10)
	contains(ask(0, "kill", id), "was killed")
	ended(t, second)
	contains(ask(2, "kill", id), "there is no open connection "+id)
	contains(ask(2, "kill", "--client", "127.0.0.0/8"), "nothing was done; say --yes")
	if err := echoesOn(first); err != nil {
		t.Error(err)
	}
	contains(ask(0, "kill", "--client", "127.0.0.0/8", "--yes"), "1 connection was killed")
	ended(t, first)
	contains(ask(0, "reload"), "generation ")
	contains(ask(0, "top", "--once"), "killed 2")
	contains(ask(2, "top"), "say --once")

	h := newHalf(t, p.address(), 1)
	contains(ask(0, "drain"), "it drains: 1 connection left, cut in 2")
	contains(ask(1, "status"), "it is not ready: it is draining")
	send(t, h, "st: x\r\n\r\n")
	if err := h.answered(); err != nil {
		t.Errorf("a request that had begun was not answered: %v", err)
	}
	if code := p.wait(); code != 0 {
		t.Errorf("it ended with %d", code)
	}
	contains(ask(3, "status"), "no levee answers at "+there)
}
