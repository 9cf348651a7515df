//go:build linux

package main

import (
	"bufio"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestAServerIsToldWhereThingsAre(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	p := &process{
		server:  server{peer{command: "$program -c $config $backend", config: "from $listen to $backend\n"}, program},
		address: "127.0.0.1:1",
		backend: &process{address: "127.0.0.1:2"},
	}
	if err := p.prepare(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	want := []string{"taskset", "-c", "3", program, "-c", program + ".conf", "127.0.0.1:2"}
	if !slices.Equal(p.running.Args, want) {
		t.Errorf("arguments %q; want %q", p.running.Args, want)
	}
	if config, err := os.ReadFile(program + ".conf"); err != nil || string(config) != "from 127.0.0.1:1 to 127.0.0.1:2\n" {
		t.Errorf("configuration %q, %v", config, err)
	}
}

// TestEveryNameInAConfigurationHasAMeaning: one without would vanish in silence.
func TestEveryNameInAConfigurationHasAMeaning(t *testing.T) {
	known := append([]string{"program", "config", "log", "listen", "backend", "collector"}, slices.Collect(maps.Keys(secrets))...)
	for _, s := range suites {
		for _, p := range s.peers {
			os.Expand(p.command+"\n"+p.config+"\n"+p.bulkConfig, func(name string) string {
				if !slices.Contains(known, name) || name == "listen" && !p.inherits || name == "backend" && len(s.backends) == 0 || secrets[name] != "" && s.prepare == nil {
					t.Errorf("%s, %s: $%s", s.key, p.key, name)
				}
				return ""
			})
		}
	}
}

// nursery starts a process with a child, which both hold the returned pipe open.
func nursery(t *testing.T) (*process, io.Reader) {
	t.Helper()
	p := &process{running: exec.CommandContext(t.Context(), "sh", "-c", "sleep 1000 & echo; wait")}
	p.running.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := p.running.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.running.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.stop() })
	lines := bufio.NewReader(out)
	if _, err := lines.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return p, lines
}

func TestAFamilyIsAProcessAndItsChildren(t *testing.T) {
	p, _ := nursery(t)
	all, err := family(p.pid())
	if err != nil || len(all) != 2 || all[0] != p.pid() {
		t.Fatalf("family %v of %d, %v", all, p.pid(), err)
	}
	both, err := holdings(p.pid())
	if err != nil {
		t.Fatal(err)
	}
	child, err := holdings(all[1])
	if err != nil {
		t.Fatal(err)
	}
	if child.files == 0 || child.anonymousKiB == 0 || both.files <= child.files || both.anonymousKiB <= child.anonymousKiB {
		t.Errorf("together %+v, of which the child has %+v", both, child)
	}
	if _, err := processTime(p.pid()); err != nil {
		t.Error(err)
	}
}

func TestKillingAServerKillsItsChildrenToo(t *testing.T) {
	p, out := nursery(t)
	_ = p.kill()
	if _, err := io.ReadAll(out); err != nil { // which ends when nobody holds the pipe any more
		t.Error(err)
	}
}

func TestWhatAServerWroteLastIsTold(t *testing.T) {
	for _, c := range []struct{ script, want string }{
		{"echo who am I >&2", "it wrote:\nwho am I\n"},
		{"head -c 1000000 /dev/zero | tr '\\0' x >&2; echo the end >&2", "xthe end\n"},
	} {
		p := &process{server: server{peer{command: "sh " + script(t, c.script)}, ""}}
		err := p.start(t.Context(), 0)
		if words := p.stop(); err == nil || !strings.HasSuffix(words, c.want) || len(words) > 3<<10 {
			t.Errorf("%s: error %v, last words %q", c.script, err, words)
		}
	}
}

func script(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
