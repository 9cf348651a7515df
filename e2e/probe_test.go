package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee/upstream/probe"
)

// probed probes a server, in the time that a pool gives it.
func probed(p probe.Probe, network, address string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	defer c.Close()
	return p(ctx, c)
}

// A verdict is what a probe is to make of a server.
type verdict struct {
	what  string
	probe probe.Probe
	want  string // part of the error; empty if the server is well
}

func judge(t *testing.T, network, address string, verdicts ...verdict) {
	t.Helper()
	for _, v := range verdicts {
		err := probed(v.probe, network, address)
		if (err == nil) != (v.want == "") || err != nil && !strings.Contains(err.Error(), v.want) {
			t.Errorf("%s: %v, want %q", v.what, err, v.want)
		}
	}
}

func TestProbeTellsHowPostgreSQLIs(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	const access = `host all secretive all scram-sha-256
host all barred all reject
host all all all trust
`
	if err := os.WriteFile(filepath.Join(c.data, "pg_hba.conf"), []byte(access), 0o600); err != nil {
		t.Fatal(err)
	}
	const sessions, reserved = 12, 2
	address := c.start(fmt.Sprintf("max_connections=%d", sessions), "superuser_reserved_connections=2", "max_wal_senders=0", "log_disconnections=on")
	newSession(t, address, "postgres")
	run(t, "psql", "-h", "127.0.0.1", "-p", portOf(t, address), "-U", "postgres", "-c", "CREATE ROLE levee LOGIN")
	lodger := probe.Postgres("levee", "postgres")
	judge(t, "tcp", address,
		verdict{"let in", lodger, ""},
		verdict{"no such user", probe.Postgres("nobody", "postgres"), ""},
		verdict{"no such database", probe.Postgres("levee", "nowhere"), ""},
		verdict{"a password", probe.Postgres("secretive", "postgres"), ""},
		verdict{"refused", probe.Postgres("barred", "postgres"), ""},
		verdict{"another protocol", probe.MySQL(""), "i/o timeout"},
	)
	eventually(t, "the sessions have ended", func() bool { return strings.Count(c.running.stderr.String(), "disconnection: ") == 2 })

	for range sessions - reserved - 1 {
		newSession(t, address, "postgres")
	}
	judge(t, "tcp", address, verdict{"full but for superusers", lodger, "53300: remaining connection slots"})
	for range reserved {
		newSession(t, address, "postgres")
	}
	judge(t, "tcp", address, verdict{"full", lodger, "53300: sorry, too many clients already"})
	c.running.signal(syscall.SIGTERM) // it waits for its sessions
	c.running.find(&c.running.stderr, `received smart shutdown request$`)
	judge(t, "tcp", address, verdict{"leaving", lodger, "57P03: the database system is shutting down"})

	log := c.running.stderr.String()
	for _, complaint := range []string{"unexpected EOF", "could not receive data", "invalid length"} {
		if strings.Contains(log, complaint) {
			t.Errorf("the probes have made it complain of %s", complaint)
		}
	}
}

func TestProbeTellsHowRedisIs(t *testing.T) {
	t.Parallel()
	address := redis(t, "--lua-time-limit", "10", "--replica-serve-stale-data", "no")
	command := func(words string) {
		t.Helper()
		c := dial(t, address)
		send(t, c, words+"\r\n")
		answer := make([]byte, 3)
		if _, err := io.ReadFull(c, answer); err != nil || string(answer) != "+OK" {
			t.Fatalf("%s: %q, %v", words, answer, err)
		}
	}
	nobody, somebody, anybody := probe.Redis(""), probe.Redis("secret"), probe.Redis("wrong")
	judge(t, "tcp", address, verdict{"open", nobody, ""}, verdict{"needs no password", somebody, ""})

	endless := dial(t, address)
	send(t, endless, "EVAL \"while true do end\" 0\r\n")
	eventually(t, "it is busy", func() bool { return fmt.Sprint(probed(nobody, "tcp", address)) != "<nil>" })
	judge(t, "tcp", address, verdict{"busy", nobody, "answered BUSY"})
	command("SCRIPT KILL")
	if _, err := endless.Read(make([]byte, 1)); err != nil { // not before the script has ended
		t.Fatal(err)
	}

	command("REPLICAOF 127.0.0.1 1")
	judge(t, "tcp", address, verdict{"without its master", nobody, "answered MASTERDOWN"})
	command("REPLICAOF NO ONE")
	command("CONFIG SET requirepass secret")
	judge(t, "tcp", address,
		verdict{"asks for a password", nobody, ""},
		verdict{"the password", somebody, ""},
		verdict{"another password", anybody, "answered WRONGPASS"},
	)
}

func TestProbeTellsThatRedisIsLoading(t *testing.T) {
	t.Parallel()
	need(t, "redis-cli")
	dir := t.TempDir()
	address := redis(t, "--dir", dir)
	port := portOf(t, address)
	cli := func(args ...string) {
		t.Helper()
		run(t, "redis-cli", append([]string{"-p", port}, args...)...)
	}
	cli("EVAL", "for i = 1, 100 do redis.call('SET', i, string.rep(i, 1000)) end", "0")
	cli("SAVE")
	cli("SHUTDOWN", "NOSAVE")
	// A twentieth of a second for each key, and a look at its clients after each.
	slow := redis(t, "--dir", dir, "--key-load-delay", "50000", "--loading-process-events-interval-bytes", "1024")
	judge(t, "tcp", slow, verdict{"loading", probe.Redis(""), "answered LOADING"})
}

func TestProbeTellsHowAWebServerIs(t *testing.T) {
	t.Parallel()
	port := freePorts(t, 1)[0]
	address := "127.0.0.1:" + port
	nginx(t, port, `http {
	server {
		listen `+address+`;
		return 444;
	}
	server {
		listen `+address+`;
		server_name shop.example.com;
		location = /healthz { return 204; }
		location = /moved { return 302 /healthz; }
		location = /ill { return 503; }
	}
}`)
	shop := func(path string) probe.Probe {
		return probe.HTTP(probe.Request{Host: "shop.example.com", Path: path})
	}
	judge(t, "tcp", address,
		verdict{"well", shop("/healthz"), ""},
		verdict{"moved", shop("/moved"), ""},
		verdict{"ill", shop("/ill"), "status 503, not 200 to 399"},
		verdict{"not there", shop("/"), "status 404, not 200 to 399"},
		verdict{"wanted ill", probe.HTTP(probe.Request{Method: "HEAD", Host: "shop.example.com", Path: "/ill", MinStatus: 503, MaxStatus: 503}), ""},
		verdict{"closed by it", probe.HTTP(probe.Request{}), "closed by the server"},
		verdict{"by hand", probe.SendExpect([]byte("GET /ill HTTP/1.0\r\nHost: shop.example.com\r\n\r\n"), []byte(" 503 ")), ""},
		verdict{"not its words", probe.SendExpect([]byte("hello\r\n"), []byte(" 200 ")), "is not in the answer"},
	)
}

func TestProbeTellsHowMariaDBIs(t *testing.T) {
	t.Parallel()
	server, socket := mariaDB(t, "--max-connections=10", "--log-warnings=2")
	judge(t, "unix", socket, verdict{"let in", probe.MySQL("levee"), ""})
	if log := server.stderr.String(); strings.Contains(log, "Aborted") || strings.Contains(log, "denied") {
		t.Error("the probe has made it complain")
	}
	judge(t, "unix", socket,
		verdict{"no such user", probe.MySQL("nobody"), ""},
		verdict{"needs a password", probe.MySQL("secretive"), ""},
	)
	for range 10 + 1 { // one is for the superuser
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	judge(t, "unix", socket, verdict{"full", probe.MySQL("levee"), "1040: Too many connections"})
}

// mariaDB starts a server with the users levee and secretive, and returns its socket.
func mariaDB(t *testing.T, args ...string) (server *process, socket string) {
	t.Helper()
	need(t, "mariadbd")
	me, err := user.Current()
	if err != nil {
		t.Skipf("skipped: %v", err)
	}
	dir := t.TempDir()
	socket = filepath.Join(dir, "s")
	if len(socket) > 100 {
		t.Skipf("skipped: %s is too long for a socket", socket)
	}
	common := []string{
		"--no-defaults", "--user=" + me.Username, "--datadir=" + dir, "--skip-networking", "--socket=" + socket,
		"--innodb-buffer-pool-size=8M", "--innodb-log-file-size=4M", "--innodb-flush-log-at-trx-commit=0",
	}
	tables := "CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket=NULL;\n"
	for _, part := range []string{"system_tables", "performance_tables", "system_tables_data"} {
		sql, err := os.ReadFile("/usr/share/mysql/mysql_" + part + ".sql")
		if err != nil {
			t.Skipf("skipped: %v", err)
		}
		tables += string(sql)
	}
	if out, err := client(t, tables, "mariadbd", append(common, "--bootstrap")...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	users := write(t, "users.sql", "CREATE USER levee@localhost;\nCREATE USER secretive@localhost IDENTIFIED BY 'secret';\n")
	server = launch(t, exec.Command("mariadbd", append(append(common, "--init-file="+users), args...)...))
	server.find(&server.stderr, `ready for connections\.$`)
	return server, socket
}

// newSession begins a session with PostgreSQL, which holds a connection.
func newSession(t *testing.T, address, username string) (c net.Conn) {
	t.Helper()
	eventually(t, "there is room for a session", func() bool { // who has just left may still have its place
		c = dial(t, address)
		body := "\x00\x03\x00\x00user\x00" + username + "\x00database\x00postgres\x00\x00"
		send(t, c, string(binary.BigEndian.AppendUint32(nil, uint32(4+len(body))))+body)
		return begins(c)
	})
	return c
}

// begins reads until the server is ready for a query, or has hung up.
func begins(c net.Conn) bool {
	for head := make([]byte, 5); head[0] != 'Z'; {
		if _, err := io.ReadFull(c, head); err != nil {
			return false
		}
		if _, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(head[1:])-4)); err != nil {
			return false
		}
	}
	return true
}
