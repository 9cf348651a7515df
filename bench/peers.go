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
// kernel chooses, with the same socket options, and say so on standard output.
type peer struct {
	key     string
	name    string
	build   func(ctx context.Context, out string) error // an executable
	command func(out string) []string                   // nil is the executable alone
}

var peers = []peer{
	{key: "c", name: "C epoll", build: buildC},
	{key: "tokio", name: "Tokio", build: buildTokio},
	{key: "gonet", name: "Go net", build: buildGo("./peers/gonet")},
	{key: "netpoll", name: "netpoll", build: buildGo("./peers/netpoll")},
	{key: "levee", name: "levee", build: buildLevee, command: serveLevee},
	{key: "sequential", name: "levee, sequential", build: buildGo("./peers/levee")},
}

func peerKeys() (keys []string) {
	for _, p := range peers {
		keys = append(keys, p.key)
	}
	return keys
}

// A server is a peer that was built.
type server struct {
	peer
	arguments []string
}

// buildFolder keeps what was built for the next time.
const buildFolder = ".build"

// build builds the peers. One that cannot be built is left out, with the reason.
func build(ctx context.Context, chosen []peer) ([]server, error) {
	folder, err := filepath.Abs(buildFolder)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, err
	}
	var servers []server
	for _, p := range chosen {
		fmt.Printf("building %s\n", p.name)
		out := filepath.Join(folder, p.key)
		if err := p.build(ctx, out); err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			fmt.Printf("  left out: %v\n", err)
			continue
		}
		s := server{p, []string{out}}
		if p.command != nil {
			s.arguments = p.command(out)
		}
		servers = append(servers, s)
	}
	if len(servers) == 0 {
		return nil, errors.New("no server could be built")
	}
	fmt.Println()
	return servers, nil
}

// tell runs a command; what it wrote is part of the error.
func tell(ctx context.Context, name string, arguments ...string) error {
	out, err := exec.CommandContext(ctx, name, arguments...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, arguments[0], err, out)
	}
	return nil
}

func buildC(ctx context.Context, out string) error {
	return tell(ctx, "cc", "-O2", "-Wall", "-Wextra", "-o", out, "peers/c/echo.c")
}

func buildGo(folder string) func(context.Context, string) error {
	return func(ctx context.Context, out string) error {
		return tell(ctx, "go", "build", "-trimpath", "-o", out, folder)
	}
}

// crates is where Debian's librust-*-dev packages put the sources of crates.
const crates = "/usr/share/cargo/registry"

// buildTokio takes Debian's crates where there are any, which needs no network, and
// otherwise those of crates.io.
func buildTokio(ctx context.Context, out string) error {
	target := out + ".target"
	arguments := []string{"build", "--release", "--quiet", "--manifest-path", "peers/tokio/Cargo.toml", "--target-dir", target}
	if _, err := os.Stat(crates); err == nil {
		arguments = append(arguments, "--offline",
			"--config", `source.crates-io.replace-with="debian"`, "--config", `source.debian.directory="`+crates+`"`)
	}
	if err := tell(ctx, "cargo", arguments...); err != nil {
		return err
	}
	if err := os.Remove(out); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Link(filepath.Join(target, "release", "echo"), out)
}

// leveeConfig is levee as its users get it: a route, and every default.
const leveeConfig = `version: 1
admin: {listen: "127.0.0.1:0"}
listeners:
  - name: bench
    listen: ["127.0.0.1:0"]
    limits: {max_connections: 10000}
    routes: [{handler: echo}]
`

func buildLevee(ctx context.Context, out string) error {
	if err := os.WriteFile(out+".yaml", []byte(leveeConfig), 0o600); err != nil {
		return err
	}
	return tell(ctx, "go", "build", "-C", "..", "-trimpath", "-o", out, "./cmd/levee")
}

func serveLevee(out string) []string { return []string{out, "serve", "-c", out + ".yaml"} }

// tokioVersion reads it from what cargo has resolved.
func tokioVersion() string {
	lock, err := os.ReadFile("peers/tokio/Cargo.lock")
	if err != nil {
		return ""
	}
	_, after, _ := strings.Cut(string(lock), "name = \"tokio\"\nversion = \"")
	version, _, _ := strings.Cut(after, "\"")
	return version
}
