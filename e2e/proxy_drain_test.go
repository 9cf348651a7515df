package e2e

import (
	"io"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// How PostgreSQL's sessions and Redis's clients leave.

const ofPostgres = "health: {probe: postgres, user: postgres, database: postgres}"

// session begins a session that stays, and has it run statements.
func (p psql) session(t *testing.T, statements string) (s *process, keyboard io.WriteCloser) {
	t.Helper()
	cmd := exec.Command("psql", "-X", "-q", "-At", p.uri("postgres"))
	keyboard, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	s = launch(t, cmd)
	_, _ = io.WriteString(keyboard, statements+"\n\\echo ready\n")
	s.find(&s.stdout, `^ready$`)
	return s, keyboard
}

func TestIdleSessionsOfPostgreSQLLeaveAtOnce(t *testing.T) {
	t.Parallel()
	need(t, "psql")
	p := start(t, "serve", "-c", proxying(t, newCluster(t).start(), "", "", ofPostgres))
	for range 5 {
		psql{address: p.address()}.session(t, "SELECT 1;")
	}
	began := time.Now()
	p.signal(syscall.SIGTERM)
	if code, took := p.wait(), p.ended.Sub(began); code != 0 || took > time.Second {
		t.Errorf("exit code %d after %v", code, took)
	}
	if line := p.logged("drained"); line["drained"] != 5.0 || line["gone"] != 0.0 {
		t.Errorf("%v", line)
	}
}

func TestAnOpenTransactionIsNotLeftBeforeTheDeadline(t *testing.T) {
	t.Parallel()
	need(t, "psql")
	p := start(t, "serve", "-c", proxying(t, newCluster(t).start(), "drain: {timeout: 8s}", "", ofPostgres))
	way := psql{address: p.address()}
	ends, keyboard := way.session(t, "CREATE TABLE t (i int); BEGIN; INSERT INTO t VALUES (1);")
	way.session(t, "BEGIN;") // and never ends
	began := time.Now()
	p.signal(syscall.SIGTERM)
	<-time.After(6500 * time.Millisecond) // longer than the silence that is enough for others
	_, _ = io.WriteString(keyboard, "INSERT INTO t VALUES (2); COMMIT;\n\\echo committed\n")
	ends.find(&ends.stdout, `^committed$`)
	if code, took := p.wait(), p.ended.Sub(began); code != 1 || took < 8*time.Second || took > 8*time.Second+promptly {
		t.Errorf("exit code %d after %v", code, took)
	}
	if line := p.logged(cutLine); line["cut"] != 1.0 || line["drained"] != 1.0 {
		t.Errorf("%v", line)
	}
}

var aborted = regexp.MustCompile(`client \d+ script \d+ aborted in command (\d+)|client \d+ aborted in command (\d+)`)

// Every client begins its next transaction as soon as it has the answer to its last COMMIT. None loses one that had begun.
func TestNoTransactionFailsThatHadBegunBeforeItEndedByItself(t *testing.T) {
	t.Parallel()
	need(t, "pgbench")
	c := newCluster(t)
	directly := psql{address: c.start("log_connections=off")}
	directly.run(t, "postgres", "CREATE TABLE done (client int)")
	script := write(t, "script.sql", `BEGIN;
INSERT INTO done VALUES (:client_id);
SELECT pg_sleep(0.01);
COMMIT;
`)
	for _, protocol := range []string{"simple", "prepared"} {
		p := start(t, "serve", "-c", proxying(t, directly.address, "drain: {timeout: 5s}", "", ofPostgres))
		before, _ := strconv.Atoi(directly.run(t, "postgres", "SELECT count(*) FROM done"))
		bench := launch(t, exec.Command("pgbench", "-n", "-c", "8", "-j", "2", "-T", "60", "-M", protocol, "-f", script, psql{address: p.address()}.uri("postgres")))
		eventually(t, "transactions run", func() bool {
			n, _ := strconv.Atoi(directly.run(t, "postgres", "SELECT count(*) FROM done"))
			return n > before+100
		})
		began := time.Now()
		p.signal(syscall.SIGTERM)
		if code, took := p.wait(), p.ended.Sub(began); code != 0 || took > 5*time.Second {
			t.Errorf("%s: exit code %d after %v", protocol, code, took)
		}
		bench.wait()
		said := bench.stderr.String()
		found := aborted.FindAllStringSubmatch(said, -1)
		for _, where := range found {
			if where[1]+where[2] != "0" {
				t.Errorf("%s: %s", protocol, where[0])
			}
		}
		if len(found) != 8 {
			t.Errorf("%s: %d clients of 8 have seen an end: %s", protocol, len(found), said)
		}
		counted := regexp.MustCompile(`number of transactions actually processed: (\d+)`).FindStringSubmatch(bench.stdout.String())
		after, _ := strconv.Atoi(directly.run(t, "postgres", "SELECT count(*) FROM done"))
		if counted == nil || counted[1] != strconv.Itoa(after-before) {
			t.Errorf("%s: the clients count %v transactions, the server %d", protocol, counted, after-before)
		}
	}
	if log := c.running.stderr.String(); strings.Contains(log, "with an open transaction") {
		t.Errorf("the server has seen transactions end in the middle:\n%s", log)
	}
}

func TestRedisClientsLeaveAtOnceAndNotWithinATransaction(t *testing.T) {
	t.Parallel()
	need(t, "redis-server")
	p := start(t, "serve", "-c", proxying(t, redis(t), "", "", "health: {probe: redis}"))
	idle, within := dial(t, p.address()), dial(t, p.address())
	talk := func(c io.ReadWriter, command, answer string) {
		t.Helper()
		if _, err := io.WriteString(c, command+"\r\n"); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(answer))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != answer {
			t.Fatalf("%s: %q, %v", command, got, err)
		}
	}
	talk(idle, "SET a 1", "+OK\r\n")
	talk(within, "MULTI", "+OK\r\n")
	talk(within, "INCR a", "+QUEUED\r\n")
	began := time.Now()
	p.signal(syscall.SIGTERM)
	if n, err := idle.Read(make([]byte, 1)); err != io.EOF || time.Since(began) > time.Second {
		t.Errorf("%d, %v after %v", n, err, time.Since(began))
	}
	<-time.After(6 * time.Second) // longer than the silence that is enough for others
	talk(within, "EXEC", "*1\r\n:2\r\n")
	if code := p.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if n, err := within.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("%d, %v", n, err)
	}
}
