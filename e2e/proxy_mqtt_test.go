package e2e

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// mqtt is a client of a broker, which publishes or subscribes: pub or sub.
func mqtt(t *testing.T, does, address string, args ...string) *exec.Cmd {
	t.Helper()
	return exec.Command(mosquito+"_"+does, append([]string{"-h", "127.0.0.1", "-p", portOf(t, address), "-V", "5"}, args...)...)
}

// publish publishes a message for which the broker has to vouch.
func publish(t *testing.T, address string, args ...string) {
	t.Helper()
	cmd := mqtt(t, "pub", address, append([]string{"-q", "1"}, args...)...)
	run(t, cmd.Args[0], cmd.Args[1:]...)
}

func TestMQTTIsTheSameThroughIt(t *testing.T) {
	t.Parallel()
	broker, directly := mqttBroker(t)
	through := before(t, directly).address()

	t.Run("every message of quality 1 arrives, in order", func(t *testing.T) {
		const messages = 5000
		var lines strings.Builder
		for i := range messages {
			lines.WriteString(strconv.Itoa(i) + "\n")
		}
		subscriber := launch(t, mqtt(t, "sub", through, "-i", "counter", "-q", "1", "-t", "numbers", "-C", strconv.Itoa(messages)))
		broker.find(&broker.stderr, `Sending SUBACK to counter$`)
		publisher := mqtt(t, "pub", through, "-q", "1", "-t", "numbers", "-l")
		digest(t, write(t, "numbers", lines.String()), publisher)
		if code := subscriber.wait(); code != 0 {
			t.Errorf("exit code %d", code)
		}
		if got := subscriber.stdout.String(); got != lines.String() {
			t.Errorf("%d of %d lines, or not the same", strings.Count(got, "\n"), messages)
		}
	})

	t.Run("a retained message awaits who comes later", func(t *testing.T) {
		publish(t, through, "-r", "-t", "state", "-m", "open")
		for _, address := range []string{through, directly} {
			cmd := mqtt(t, "sub", address, "-t", "state", "-C", "1", "-W", "10")
			if got := run(t, cmd.Args[0], cmd.Args[1:]...); got != "open\n" {
				t.Errorf("%q", got)
			}
		}
	})

	t.Run("what a session missed is kept for it", func(t *testing.T) {
		session := func(more ...string) *exec.Cmd {
			return mqtt(t, "sub", through, append([]string{"-i", "absent", "-x", "3600", "-c", "-q", "1", "-t", "mail"}, more...)...)
		}
		cmd := session("-E") // leaves once it has subscribed
		run(t, cmd.Args[0], cmd.Args[1:]...)
		publish(t, through, "-t", "mail", "-m", "a letter")
		cmd = session("-C", "1", "-W", "10")
		if got := run(t, cmd.Args[0], cmd.Args[1:]...); got != "a letter\n" {
			t.Errorf("%q", got)
		}
	})
}

// A client that says nothing but that it is alive outlives an idle timeout that is
// longer than its silence.
func TestMQTTSessionLivesByItsKeepAlive(t *testing.T) {
	t.Parallel()
	broker, address := mqttBroker(t)
	p := start(t, "serve", "-c", proxying(t, address, "", "timeouts: {idle: 8s}", ""))
	// 5 s is the shortest that this client knows.
	subscriber := launch(t, mqtt(t, "sub", p.address(), "-i", "quiet", "-k", "5", "-t", "rare", "-C", "1"))
	broker.find(&broker.stderr, `Sending SUBACK to quiet$`)
	broker.find(&broker.stderr, `(?s)Received PINGREQ from quiet$.*Received PINGREQ from quiet$`)
	publish(t, p.address(), "-t", "rare", "-m", "at last")
	subscriber.find(&subscriber.stdout, `^at last$`)
	if code := subscriber.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if n := p.scrape().closed("idle_timeout"); n != 0 {
		t.Errorf("%v connections were idle for too long", n)
	}
}
