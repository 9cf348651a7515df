package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// redisCLI is a command to a Redis server.
func redisCLI(t *testing.T, address string, args ...string) *exec.Cmd {
	t.Helper()
	return exec.Command("redis-cli", append([]string{"-h", "127.0.0.1", "-p", portOf(t, address)}, args...)...)
}

// ask returns a Redis server's answer.
func ask(t *testing.T, address string, args ...string) string {
	t.Helper()
	cmd := redisCLI(t, address, args...)
	return strings.TrimSpace(run(t, cmd.Args[0], cmd.Args[1:]...))
}

func TestRedisIsTheSameThroughIt(t *testing.T) {
	t.Parallel()
	need(t, "redis-cli")
	need(t, "redis-benchmark")
	directly := redis(t, "--enable-debug-command", "local")
	p := before(t, directly)
	through := p.address()

	t.Run("redis-benchmark, one by one and in pipelines", func(t *testing.T) {
		for _, pipeline := range []string{"1", "16"} {
			out := run(t, "redis-benchmark", "-h", "127.0.0.1", "-p", portOf(t, through), "-q", "-c", "20", "-n", "10000", "-P", pipeline, "-t", "ping_mbulk,set,get,lrange_100")
			if n := strings.Count(out, "requests per second"); n != 5 || strings.Contains(strings.ToLower(out), "error") {
				t.Errorf("%d results in\n%s", n, out)
			}
		}
	})

	t.Run("90,000 commands at once", func(t *testing.T) {
		var commands strings.Builder
		for i := range 30_000 {
			fmt.Fprintf(&commands, "SET key:%d %s\r\nINCRBY sum %d\r\nSADD set:%d %d\r\n", i, strings.Repeat("x", 1+i%100), i, i%7, i)
		}
		file := write(t, "commands", commands.String())
		var states []string
		for _, address := range []string{directly, through} {
			ask(t, address, "FLUSHALL")
			pipe := redisCLI(t, address, "--pipe")
			digest(t, file, pipe) // which fails if redis-cli does
			states = append(states, ask(t, directly, "DEBUG", "DIGEST")+" "+ask(t, directly, "DBSIZE")+" "+ask(t, directly, "GET", "sum"))
		}
		if states[0] != states[1] || !strings.HasSuffix(states[0], " 30008 449985000") {
			t.Errorf("directly and proxied there came of it %q", states)
		}
	})

	t.Run("a value of 64 MB", func(t *testing.T) {
		file := randomFile(t, 64<<20)
		want := digest(t, file, exec.Command("cat"))
		digest(t, file, redisCLI(t, through, "-x", "SET", "big"))
		if got := ask(t, directly, "STRLEN", "big"); got != "67108864" {
			t.Errorf("%s bytes arrived", got)
		}
		if got := digest(t, "", exec.Command("sh", "-c", redisCLI(t, through, "--raw", "GET", "big").String()+" | head -c 67108864")); got != want {
			t.Errorf("%s came back, want %s", got, want)
		}
		ask(t, directly, "FLUSHALL")
	})

	t.Run("publish and subscribe, and MONITOR", func(t *testing.T) {
		monitor := launch(t, redisCLI(t, through, "MONITOR"))
		monitor.find(&monitor.stdout, `^OK$`)
		subscriber := launch(t, redisCLI(t, through, "SUBSCRIBE", "news"))
		subscriber.find(&subscriber.stdout, `^subscribe$`)
		for i := range 20 {
			word := fmt.Sprintf("word-%d", i)
			if got := ask(t, through, "PUBLISH", "news", word); got != "1" {
				t.Errorf("%s subscribers", got)
			}
			subscriber.find(&subscriber.stdout, `^`+word+`$`)
			monitor.find(&monitor.stdout, `"PUBLISH" "news" "`+word+`"$`)
		}
	})
}
