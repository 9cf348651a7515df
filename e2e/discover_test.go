package e2e

import (
	"context"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee/upstream"
	"github.com/levee-net/levee/upstream/discover"
)

// A source is what tells where servers are.
type source interface {
	Run(ctx context.Context, update func([]upstream.Server)) error
}

// watch runs a source until the test ends, and returns a function that waits for its
// next update, with the names, addresses and tiers of the servers.
func watch(t *testing.T, s source) (expect func(want string)) {
	t.Helper()
	updates := make(chan string, 100)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { // until the clean-up
		defer close(ended)
		_ = s.Run(ctx, func(servers []upstream.Server) {
			var texts []string
			for _, one := range servers {
				texts = append(texts, one.Name+"="+strings.Join(one.Addresses, "+")+"/"+string(rune('0'+one.Tier)))
			}
			updates <- strings.Join(texts, " ")
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return func(want string) {
		t.Helper()
		select {
		case got := <-updates:
			if got != want {
				t.Fatalf("told %s, want %s", got, want)
			}
		case <-time.After(patience):
			t.Fatalf("never told %s", want)
		}
	}
}

func TestDnsmasqIsFollowed(t *testing.T) {
	t.Parallel()
	me, err := user.Current()
	if err != nil {
		t.Skipf("skipped: %v", err)
	}
	hosts := write(t, "hosts", "10.0.0.7 db.example.com\n2001:db8::7 db.example.com\n10.0.0.8 standby.example.com\n")
	port := freePorts(t, 1)[0]
	server := listening(t, port, exec.Command("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user="+me.Username, "--pid-file",
		"--listen-address=127.0.0.1", "--bind-interfaces", "--port="+port, "--no-resolv", "--no-hosts", "--addn-hosts="+hosts,
		"--local=/example.com/nowhere.test/", "--local-ttl=1", "--cname=alias.example.com,db.example.com",
		"--srv-host=_pg._tcp.example.com,db.example.com,5432,5,9", "--srv-host=_pg._tcp.example.com,standby.example.com,5433,7,1"))

	resolver := &discover.Resolver{
		Servers:    []string{"127.0.0.1:" + port},
		ConfigFile: write(t, "resolv.conf", "search nowhere.test example.com\n"),
		HostsFile:  filepath.Join(t.TempDir(), "none"),
	}
	each := watch(t, &discover.DNS{Name: "db", Port: 5432, Resolver: resolver})
	one := watch(t, &discover.DNS{Name: "alias.example.com", Port: 5432, Single: true, Resolver: resolver})
	services := watch(t, &discover.SRV{Name: "_pg._tcp.example.com", Resolver: resolver})
	each("10.0.0.7:5432=10.0.0.7:5432/0 [2001:db8::7]:5432=[2001:db8::7]:5432/0")
	one("alias.example.com:5432=10.0.0.7:5432+[2001:db8::7]:5432/0")
	services("db.example.com:5432=10.0.0.7:5432+[2001:db8::7]:5432/0 standby.example.com:5433=10.0.0.8:5433/1")

	if err := os.WriteFile(hosts, []byte("10.0.0.9 db.example.com\n10.0.0.8 standby.example.com\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	server.signal(syscall.SIGHUP) // it reads its hosts again
	each("10.0.0.9:5432=10.0.0.9:5432/0")
	one("alias.example.com:5432=10.0.0.9:5432/0")
	services("db.example.com:5432=10.0.0.9:5432/0 standby.example.com:5433=10.0.0.8:5433/1")
}
