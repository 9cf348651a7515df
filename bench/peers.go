//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A peer is a server under test. All of them listen on a port of 127.0.0.1 that the
// kernel chooses, with the same socket options.
//
// In a command and a configuration stand $program, its executable; $config, the file
// with the configuration; $listen, where it listens, if it inherits that; $backend, the
// address of what is behind it; $log, a file for its log; $collector, the address of who takes spans; and for TLS $certificate, $key and $bundle, which is both,
// the files.
type peer struct {
	key        string
	name       string
	build      func(ctx context.Context, out string) error // an executable
	command    string                                      // none is the executable alone
	config     string
	bulkConfig string // for bulk instead, if there is one
	inherits   bool   // the listening socket, as file 3; the others say on standard output where they listen
	metrics    bool   // it says where they are
	drains     bool   // on SIGTERM; the others die of it
}

// A server is a peer that was built.
type server struct {
	peer
	program string
}

// buildFolder keeps what was built for the next time.
const buildFolder = ".build"

// build builds the suite. A peer that cannot be built is left out, with the reason;
// without its backends there is no suite.
func (s *suite) build(ctx context.Context) error {
	if err := os.MkdirAll(buildFolder, 0o755); err != nil {
		return err
	}
	if s.prepare != nil {
		if err := s.prepare(buildFolder); err != nil {
			return err
		}
	}
	s.behind = map[string]server{}
	for _, p := range s.backends {
		backend, err := p.make(ctx, s.key+"-behind-"+p.key)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		s.behind[p.key] = backend
	}
	for _, p := range s.peers {
		switch built, err := p.make(ctx, s.key+"-"+p.key); {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			fmt.Printf("  left out: %v\n", err)
		default:
			s.servers = append(s.servers, built)
		}
	}
	return nil
}

func (p peer) make(ctx context.Context, name string) (server, error) {
	fmt.Printf("building %s\n", p.name)
	out, err := filepath.Abs(filepath.Join(buildFolder, name))
	if err != nil {
		return server{}, err
	}
	return server{p, out}, p.build(ctx, out)
}

// tell runs a command; what it wrote is part of the error.
func tell(ctx context.Context, name string, arguments ...string) error {
	out, err := exec.CommandContext(ctx, name, arguments...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, arguments[0], err, out)
	}
	return nil
}

func buildC(name string) func(context.Context, string) error {
	return func(ctx context.Context, out string) error {
		return tell(ctx, "cc", "-O2", "-Wall", "-Wextra", "-o", out, "peers/c/"+name+".c")
	}
}

func buildGo(folder string) func(context.Context, string) error {
	return func(ctx context.Context, out string) error {
		return tell(ctx, "go", "build", "-trimpath", "-o", out, folder)
	}
}

func buildLevee(ctx context.Context, out string) error {
	return tell(ctx, "go", "build", "-C", "..", "-trimpath", "-o", out, "./cmd/levee")
}

// crates is where Debian's librust-*-dev packages put the sources of crates.
const crates = "/usr/share/cargo/registry"

// buildTokio takes Debian's crates where there are any, which needs no network, and
// otherwise those of crates.io.
func buildTokio(folder, name string) func(context.Context, string) error {
	return func(ctx context.Context, out string) error {
		target := filepath.Join(filepath.Dir(out), "tokio.target") // Tokio itself is compiled once for all
		arguments := []string{"build", "--release", "--quiet", "--manifest-path", folder + "/Cargo.toml", "--target-dir", target}
		if _, err := os.Stat(crates); err == nil {
			arguments = append(arguments, "--offline",
				"--config", `source.crates-io.replace-with="debian"`, "--config", `source.debian.directory="`+crates+`"`)
		}
		if err := tell(ctx, "cargo", arguments...); err != nil {
			return err
		}
		return link(os.Link, filepath.Join(target, "release", name), out)
	}
}

// findCommand takes what is installed, in a folder that only root may have in its
// PATH.
func findCommand(name string) func(context.Context, string) error {
	return func(_ context.Context, out string) error {
		found, err := exec.LookPath(name)
		if err != nil {
			found, err = exec.LookPath("/usr/sbin/" + name)
		}
		if err != nil {
			return err
		}
		return link(os.Symlink, found, out)
	}
}

// link links, replacing what was there.
func link(how func(from, to string) error, from, to string) error {
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return how(from, to)
}

// crateVersion reads it from what cargo has resolved for a peer.
func crateVersion(peer, crate string) string {
	lock, err := os.ReadFile("peers/" + peer + "/Cargo.lock")
	if err != nil {
		return ""
	}
	_, after, _ := strings.Cut(string(lock), "name = \""+crate+"\"\nversion = \"")
	version, _, _ := strings.Cut(after, "\"")
	return version
}
