package attack_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/attack"
	"github.com/levee-net/levee/leveetest"
)

const asAttackers = "LEVEE_ATTACK_AS_ATTACKERS"

// elsewhere is this program once more.
func elsewhere(ctx context.Context) *exec.Cmd {
	c := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestAttackersElsewhereDoTheSame$")
	c.Env = append(os.Environ(), asAttackers+"=1")
	c.Stderr = os.Stderr
	return c
}

func TestAttackersElsewhereDoTheSame(t *testing.T) {
	if os.Getenv(asAttackers) != "" {
		if err := attack.Serve(context.Background(), os.Stdin, os.Stdout); err != nil {
			t.Log(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	leveetest.CheckLeaks(t)
	ca := leveetest.NewCA(t)
	f := small(serve(t, echoInTLS(ca.ServerConfig("localhost"))), "handshakes", "slow-line")
	f.TLS, f.Elsewhere, f.Duration = ca.ClientConfig("localhost"), elsewhere, time.Second
	report := run(t, f)
	for _, r := range report.Results {
		want := attack.Tally{Attempts: max(1, r.Tally.Attempts), Held: r.Tally.Attempts} // in a second, as many as this machine can
		if r.Attack == "handshakes" {
			want.Left, want.Held = r.Tally.Left, r.Tally.Attempts-r.Tally.Left
		}
		if r.Tally != want || len(r.Complaints) > 0 {
			t.Errorf("%+v", r)
		}
	}
}

func TestAttackersElsewhereThatFailAreToldOf(t *testing.T) {
	f := small(serve(t, echo), "hold")
	f.Elsewhere = func(ctx context.Context) *exec.Cmd { return exec.CommandContext(ctx, "/nonexistent/levee") }
	if got := strings.Join(run(t, f).Results[0].Complaints, "\n"); !strings.Contains(got, "the attackers did not all get to it: ") {
		t.Errorf("complaints: %q", got)
	}
}

// TestAttackersLeaveWithWhoOrderedThem: what is left of a flood that was killed would be an attack.
func TestAttackersLeaveWithWhoOrderedThem(t *testing.T) {
	leveetest.CheckLeaks(t)
	connected := make(chan struct{}, 1)
	target := serve(t, func(c *net.TCPConn) {
		connected <- struct{}{}
		echo(c)
	})
	orders, err := json.Marshal(map[string]any{"Attack": "hold", "Target": target, "Request": "eA==", "Connections": 1, "Rate": 10, "Duration": time.Hour / 60})
	if err != nil {
		t.Fatal(err)
	}
	in, order := io.Pipe()
	news, out := io.Pipe()
	served := make(chan error, 1)
	go func() {
		served <- attack.Serve(t.Context(), in, out)
		out.Close()
	}()
	order.Write(orders)
	go func() {
		<-connected
		order.Close()
	}()
	last, err := io.ReadAll(news)
	if err != nil || !strings.HasSuffix(string(last), "\n") {
		t.Errorf("%q, %v", last, err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestAttackersObeyOnlyWhatMakesSense(t *testing.T) {
	for orders, want := range map[string]string{
		"":                  "orders for attackers: EOF",
		`{"Attack":"nod"}`:  `there is no attack "nod"`,
		`{"Attack":"hold"}`: "no target",
		`{"Attack":"hold","Target":"127.0.0.1:7","Connections":1000000}`: "1000000 connections: at most 15000",
		`{"Attack":"hold","Target":"192.0.2.1:7","Connections":1}`:       "192.0.2.1 is not a loopback address, and nobody said that he owns it",
	} {
		if err := attack.Serve(t.Context(), strings.NewReader(orders), io.Discard); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", orders, err, want)
		}
	}
}

// TestAttackersEndInTimeByThemselves: whoever ordered them may have forgotten them.
func TestAttackersEndInTimeByThemselves(t *testing.T) {
	orders, err := json.Marshal(map[string]any{"Attack": "hold", "Target": serve(t, echo), "Connections": 1, "Rate": 10, "Duration": 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	in, order := io.Pipe()
	defer order.Close()
	served := make(chan error, 1)
	go func() { served <- attack.Serve(t.Context(), in, io.Discard) }()
	order.Write(orders)
	select {
	case err := <-served:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("they go on although their time is over")
	}
}
