package e2e

import (
	"net"
	"strings"
	"sync/atomic"
	"testing"
)

func TestDefaultAddressIsTheOneInTheREADME(t *testing.T) {
	for _, address := range []string{"127.0.0.1:8080", "127.0.0.1:9180"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Skipf("skipped: %v", err)
		}
		l.Close()
	}
	p := start(t)
	if got := p.address(); got != "127.0.0.1:8080" {
		t.Errorf("Listening on %s", got)
	}
	if got := p.admin("/metrics"); got != "http://127.0.0.1:9180/metrics" {
		t.Errorf("Metrics on %s", got)
	}
	if err := echoes("127.0.0.1:8080"); err != nil {
		t.Error(err)
	}
	if status, _ := get(t, "http://127.0.0.1:9180/readyz"); status != 200 {
		t.Errorf("readyz: %d", status)
	}
}

func TestNetcatGetsItsWordsBack(t *testing.T) {
	t.Parallel()
	host, port, _ := net.SplitHostPort(start(t, free...).address())
	if out, err := client(t, "hi\n", "nc", "-N", host, port); out != "hi\n" || err != nil {
		t.Errorf("%q, %v", out, err)
	}
}

func TestCurlGetsAnAnswer(t *testing.T) {
	t.Parallel()
	p := start(t, free...)
	out, err := client(t, "", "curl", "-sS", "-w", "%{http_code} %{http_version}", "http://"+p.address()+"/")
	if out != "Hello from levee, in plaintext.\n200 1.1" || err != nil {
		t.Errorf("%q, %v", out, err)
	}
	for _, url := range []string{"https://" + p.address() + "/", strings.Replace("https://"+p.address()+"/", "127.0.0.1", "localhost", 1)} {
		out, err = client(t, "", "curl", "-sS", "--cacert", p.ca(), "-w", "%{http_code} %{ssl_verify_result}", url)
		if out != "Hello from levee, over TLS.\n200 0" || err != nil {
			t.Errorf("%s: %q, %v", url, out, err)
		}
	}
	// Many requests on one connection.
	out, err = client(t, "", "curl", "-sS", "-w", "%{num_connects} ", "-o", "/dev/null", "http://"+p.address()+"/[1-5]")
	if strings.Contains(out, "curl:") || err != nil {
		t.Errorf("%q, %v", out, err)
	}
}

func TestOpenSSLCompletesTLS13AndVerifiesTheDevelopmentCA(t *testing.T) {
	t.Parallel()
	p := start(t, free...)
	out, err := client(t, "", "openssl", "s_client", "-brief", "-verify_return_error", "-verify_ip", "127.0.0.1",
		"-CAfile", p.ca(), "-connect", p.address())
	for _, want := range []string{"Protocol version: TLSv1.3\n", "Verification: OK\n"} {
		if !strings.Contains(out, want) || err != nil {
			t.Errorf("no %q, %v, in\n%s", want, err, out)
		}
	}
	out, err = client(t, "", "openssl", "s_client", "-brief", "-tls1_1", "-connect", p.address())
	if err == nil {
		t.Errorf("TLS 1.1 is accepted:\n%s", out)
	}
}

// underLoad runs a load generator, and returns what it wrote and the most
// connections that were seen meanwhile.
func underLoad(t *testing.T, p *process, program string, args ...string) (out string, most float64) {
	t.Helper()
	need(t, program)
	var over atomic.Bool
	done := make(chan error, 1)
	go func() {
		var err error
		out, err = client(t, "", program, args...)
		over.Store(true)
		done <- err
	}()
	for !over.Load() {
		s := p.scrape()
		most = max(most, s.of("levee_connections_active"))
		if !s.addsUp() {
			t.Errorf("a scrape does not add up: %v", s)
			break
		}
	}
	if err := <-done; err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	eventually(t, "all have left, and every connection is accounted for", func() bool {
		s := p.scrape()
		return s.of("levee_connections_active") == 0 && s.addsUp()
	})
	return out, most
}

func TestNoRequestOfWrkFails(t *testing.T) {
	p := start(t, free...)
	out, most := underLoad(t, p, "wrk", "-t1", "-c64", "-d2s", "http://"+p.address()+"/")
	if !strings.Contains(out, "Requests/sec") || strings.Contains(out, "Socket errors") || strings.Contains(out, "Non-2xx") {
		t.Error(out)
	}
	if most < 64 {
		t.Errorf("at most %v connections were seen", most)
	}
}

// On the built-in configuration, which turns newcomers away if the machine is too busy: nothing runs beside it.
func TestNoRequestOfApacheBenchFails(t *testing.T) {
	for name, args := range map[string][]string{"a connection each": nil, "kept alive": {"-k"}} {
		t.Run(name, func(t *testing.T) {
			p := start(t, free...)
			out, most := underLoad(t, p, "ab", append(args, "-q", "-n", "10000", "-c", "64", "http://"+p.address()+"/")...)
			if !strings.Contains(out, "Complete requests:      10000\n") || !strings.Contains(out, "Failed requests:        0\n") || strings.Contains(out, "Non-2xx") {
				t.Error(out)
			}
			if most == 0 {
				t.Error("no connection was seen")
			}
			// ab opens a few that it does not use.
			if accepted := p.scrape().of("levee_connections_accepted_total"); (accepted >= 10000) != (len(args) == 0) {
				t.Errorf("%v connections", accepted)
			}
		})
	}
}

func TestShellsAreToldWhatMayFollow(t *testing.T) {
	t.Parallel()
	for input, want := range map[string]string{"": "serve:", "serve -": "--listen", "check -": "--config"} {
		args := append(strings.Fields(input), "--generate-shell-completion")
		out, err := client(t, "", levee, args...)
		if !strings.Contains(out, want) || err != nil {
			t.Errorf("levee %s: %q, %v", input, out, err)
		}
	}
}
