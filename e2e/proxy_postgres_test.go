package e2e

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A psql runs statements on a server, and returns what psql prints of them.
type psql struct{ address, options string }

func (p psql) uri(database string) string {
	return "postgresql://postgres@" + p.address + "/" + database + "?" + p.options
}

func (p psql) command(database string, statements ...string) *exec.Cmd {
	args := []string{"-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", p.uri(database)}
	for _, s := range statements {
		args = append(args, "-c", s)
	}
	return exec.Command("psql", args...)
}

func (p psql) run(t *testing.T, database string, statements ...string) string {
	t.Helper()
	cmd := p.command(database, statements...)
	return strings.TrimSpace(run(t, cmd.Args[0], cmd.Args[1:]...))
}

func TestPostgreSQLIsTheSameThroughIt(t *testing.T) {
	t.Parallel()
	need(t, "pgbench")
	directly := psql{address: newCluster(t).start()}
	p := before(t, directly.address)
	through := psql{address: p.address()}

	t.Run("pgbench", func(t *testing.T) {
		var states []string
		for database, way := range map[string]psql{"direct": directly, "proxied": through} {
			way.run(t, "postgres", "CREATE DATABASE "+database)
			run(t, "pgbench", "-q", "-i", "-s", "1", way.uri(database))
			for _, protocol := range []string{"simple", "prepared"} {
				out := run(t, "pgbench", "-n", "-c", "4", "-t", "250", "--random-seed=42", "-M", protocol, way.uri(database))
				if !strings.Contains(out, "number of transactions actually processed: 1000/1000\n") || !strings.Contains(out, "number of failed transactions: 0 ") {
					t.Errorf("%s: %s", database, out)
				}
			}
			out := run(t, "pgbench", "-n", "-c", "4", "-t", "50", "-C", "-S", way.uri(database)) // a connection each
			if !strings.Contains(out, "number of transactions actually processed: 200/200\n") {
				t.Errorf("%s: %s", database, out)
			}
			state := ""
			for _, table := range []string{"accounts", "tellers", "branches"} {
				state += directly.run(t, database, "SELECT '"+table+"', count(*), md5(string_agg(t::text, ';' ORDER BY t::text)) FROM pgbench_"+table+" t") + "\n"
			}
			states = append(states, state+directly.run(t, database, "SELECT count(*), sum(delta) FROM pgbench_history"))
		}
		if states[0] != states[1] || !strings.Contains(states[0], "accounts|100000|") || !strings.Contains(states[0], "\n2000|") {
			t.Errorf("directly and proxied there came of it\n%s", strings.Join(states, "\n\n"))
		}
	})

	t.Run("31 MB by COPY, out and in", func(t *testing.T) {
		const lines = "COPY (SELECT i, repeat(md5(i::text), 3) FROM generate_series(1, 300000) i) TO STDOUT"
		file := filepath.Join(t.TempDir(), "lines")
		out, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		writing := directly.command("postgres", lines)
		writing.Stdout = out
		if err := writing.Run(); err != nil {
			t.Fatal(err)
		}
		want := digest(t, file, exec.Command("cat"))
		if got := digest(t, "", through.command("postgres", lines)); got != want || !strings.HasPrefix(got, "31088895 ") {
			t.Errorf("out: %s, want %s", got, want)
		}
		through.run(t, "postgres", "CREATE UNLOGGED TABLE lines (i int, text text)")
		digest(t, file, through.command("postgres", "COPY lines FROM STDIN"))
		if got := digest(t, "", directly.command("postgres", "COPY lines TO STDOUT")); got != want {
			t.Errorf("in: %s, want %s", got, want)
		}
	})

	t.Run("a notification to somebody who is idle", func(t *testing.T) {
		listener := exec.Command("psql", "-X", "-q", "-At", through.uri("postgres"))
		keyboard, err := listener.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		l := launch(t, listener)
		io.WriteString(keyboard, "LISTEN news;\n\\echo listening\n")
		l.find(&l.stdout, `^listening$`)
		through.run(t, "postgres", "SELECT pg_sleep(2.5)", "NOTIFY news, 'hot'")
		io.WriteString(keyboard, "SELECT 'still here';\n")
		l.find(&l.stdout, `^still here$`)
		l.find(&l.stdout, `^Asynchronous notification "news" with payload "hot" received from server process with PID \d+\.$`)
		keyboard.Close()
		if code := l.wait(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})

	t.Run("an error is an error", func(t *testing.T) {
		cmd := through.command("postgres", "SELECT 1/0")
		out, err := cmd.CombinedOutput()
		if err == nil || string(out) != "ERROR:  division by zero\n" {
			t.Errorf("%q, %v", out, err)
		}
	})

	if s := p.scrape(); s[`levee_upstream_healthy{server="`+directly.address+`",upstream="servers"}`] != 1 {
		t.Error("the server is not healthy")
	}

	t.Run("a query that runs is answered before levee leaves, and who is idle leaves", func(t *testing.T) {
		idle := through.command("postgres")
		keyboard, err := idle.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		i := launch(t, idle)
		io.WriteString(keyboard, "BEGIN;\n\\echo begun\n")
		i.find(&i.stdout, `^begun$`)
		busy := launch(t, through.command("postgres", "SET application_name = 'busy'", "SELECT pg_sleep(3)", "SELECT 'done'"))
		eventually(t, "the query runs", func() bool {
			return directly.run(t, "postgres", "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'busy' AND wait_event = 'PgSleep'") == "1"
		})
		p.signal(syscall.SIGTERM)
		eventually(t, "the transaction that is idle is over", func() bool {
			return directly.run(t, "postgres", "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'") == "0"
		})
		busy.find(&busy.stdout, `^done$`)
		if code := p.wait(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
}

// Ctrl-C in psql is a second connection, with a secret that only one server knows.
func TestCancelRequestReachesTheServerThatItIsFor(t *testing.T) {
	t.Parallel()
	need(t, "psql")
	first := newCluster(t)
	second := first.again()
	servers := first.start() + "," + second.start()
	for name, args := range map[string][]string{
		"of one":                    {strings.Split(servers, ",")[0]},
		"of several by source_hash": {servers, "--balance", "source_hash"},
	} {
		t.Run(name, func(t *testing.T) {
			p := before(t, args[0], args[1:]...)
			way := psql{address: p.address()}
			session := way.command("postgres", "SET application_name = 'sleeper'", "SELECT pg_sleep(600)")
			l := launch(t, session)
			eventually(t, "the query runs", func() bool {
				return way.run(t, "postgres", "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sleeper' AND wait_event = 'PgSleep'") == "1"
			})
			began := time.Now()
			l.signal(os.Interrupt)
			l.find(&l.stderr, `^ERROR:  canceling statement due to user request$`)
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("after %v", took)
			}
		})
	}
}

// levee has no part in the encryption that PostgreSQL's client and server agree on.
func TestPostgreSQLsOwnTLSPassesThrough(t *testing.T) {
	t.Parallel()
	need(t, "psql")
	need(t, "openssl")
	c := newCluster(t)
	cert, key := certificate(t, t.TempDir(), "db.example.com")
	if err := os.WriteFile(filepath.Join(c.data, "pg_hba.conf"), []byte("hostssl all all 127.0.0.1/32 trust\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	address := c.start("ssl=on", "ssl_cert_file="+c.give("server.pem", cert), "ssl_key_file="+c.give("server-key.pem", key))
	p := start(t, "serve", "-c", proxying(t, address, "", "", "health: {probe: postgres, user: postgres, interval: 1s, timeout: 1s, fall: 1}"))
	for _, options := range []string{"sslmode=require", "sslmode=verify-full&sslrootcert=" + cert} {
		got := psql{p.address(), options}.run(t, "postgres", "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
		if got != "t|TLSv1.3" {
			t.Errorf("%s: %s", options, got)
		}
	}
	// The probe comes in plaintext. That it is refused is a sign of life.
	c.running.find(&c.running.stderr, `(?s)(no pg_hba.conf entry for host .* no encryption$.*){2}`)
	if p.scrape()[`levee_upstream_healthy{server="`+address+`",upstream="servers"}`] != 1 {
		t.Error("the server is not healthy")
	}
	refused := psql{p.address(), "sslmode=disable"}.command("postgres", "SELECT 1")
	if out, err := refused.CombinedOutput(); err == nil || !strings.Contains(string(out), "no encryption") {
		t.Errorf("in plaintext: %q, %v", out, err)
	}
	const lines = "COPY (SELECT i, repeat(md5(i::text), 3) FROM generate_series(1, 100000) i) TO STDOUT"
	want := digest(t, "", psql{address, "sslmode=require"}.command("postgres", lines))
	if got := digest(t, "", psql{p.address(), "sslmode=require"}.command("postgres", lines)); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
