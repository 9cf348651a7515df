//go:build unix

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// TestTransactionsAreFinished: psql gets TLS, or no answer; and a shutdown waits for its transaction, and not for the client.
func TestTransactionsAreFinished(t *testing.T) {
	pool, err := newPool(startPostgres(t))
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := newServer(pool, leveetest.NewCA(t).ServerConfig("localhost"))
	draining := make(chan struct{}, 10)
	srv.Trace = &levee.Trace{Draining: func(*levee.Conn) { draining <- struct{}{} }}
	served := make(chan error, 1)
	ctx, leave := context.WithCancel(t.Context())
	go func() { served <- srv.Serve(ctx, listener) }()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	uri := "host=127.0.0.1 dbname=postgres user=postgres port=" + port

	out, err := psql(t, uri+" sslmode=disable", "-c", "SELECT 1").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "encrypted") {
		t.Errorf("without TLS: %v, %s; want to be told that it is needed", err, out)
	}

	session := psql(t, uri+" sslmode=require")
	in, _ := session.StdinPipe()
	answers, _ := session.StdoutPipe()
	if err := session.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(answers)
	ask := func(query, want string) {
		t.Helper()
		io.WriteString(in, query+"\n")
		if line, err := lines.ReadString('\n'); strings.TrimSpace(line) != want {
			t.Fatalf("%s: %q, %v, want %q", query, line, err, want)
		}
	}
	ask("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid();", "f") // behind the front it is plaintext
	ask("BEGIN;", "BEGIN")
	leave()
	<-draining
	ask("SELECT 'still here';", "still here")
	ask("COMMIT;", "COMMIT")
	if err := <-served; err != nil { // the session is still open, and is not waited for
		t.Errorf("serve: %v", err)
	}
	if closed := srv.Stats().Closed; closed[levee.Drained] != 1 {
		t.Errorf("closed are %v", closed)
	}
	in.Close()
	_ = session.Wait()
}

func psql(t *testing.T, uri string, args ...string) *exec.Cmd {
	t.Helper()
	if _, err := exec.LookPath("psql"); err != nil {
		t.Skip("skipped: psql is not installed")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return exec.CommandContext(ctx, "psql", append([]string{"-X", "-At", uri}, args...)...)
}

// startPostgres starts a real server for the test and returns its address.
func startPostgres(t *testing.T) string {
	t.Helper()
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin") // where Debian keeps what is not for clients
	if len(bins) == 0 {
		t.Skip("skipped: postgresql is not installed")
	}
	dir, err := os.MkdirTemp("", "levee-postgres") // t.TempDir is inside a folder that others may not enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	as := &syscall.SysProcAttr{}
	if os.Getuid() == 0 { // it refuses to run as root
		account, err := user.Lookup("postgres")
		if err != nil {
			t.Skipf("skipped: %v", err)
		}
		uid, _ := strconv.Atoi(account.Uid)
		gid, _ := strconv.Atoi(account.Gid)
		as.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	command := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(slices.Max(bins), name), args...)
		cmd.SysProcAttr, cmd.Dir = as, dir
		return cmd
	}
	data := filepath.Join(dir, "data")
	if out, err := command("initdb", "-U", "postgres", "-A", "trust", "--no-locale", "--no-sync", "-D", data).CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	socket := filepath.Join(dir, ".s.PGSQL.5432")
	server := command("postgres", "-D", data, "-c", "listen_addresses=", "-c", "unix_socket_directories="+dir, "-c", "fsync=off")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Process.Signal(syscall.SIGQUIT)
		server.Wait()
	})
	for deadline := time.Now().Add(20 * time.Second); ; {
		out, err := exec.Command("psql", "-X", "-h", dir, "-U", "postgres", "-c", "SELECT 1").CombinedOutput()
		if err == nil {
			return "unix:" + socket
		}
		if time.Now().After(deadline) {
			t.Fatal(fmt.Errorf("%w: %s", err, out))
		}
		<-time.After(20 * time.Millisecond)
	}
}
