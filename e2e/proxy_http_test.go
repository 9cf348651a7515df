package e2e

import (
	"os/exec"
	"strings"
	"testing"
)

// web starts nginx with a page, and returns the address at which it speaks HTTP/1.1 and
// the one for HTTP/2 without TLS.
func web(t *testing.T) (http1, http2 string) {
	t.Helper()
	ports := freePorts(t, 2)
	nginx(t, ports[0], `
http {
	server {
		listen 127.0.0.1:`+ports[0]+`;
		listen 127.0.0.1:`+ports[1]+` http2;
		location / { return 200 "a page from nginx\n"; }
	}
}
`)
	return "127.0.0.1:" + ports[0], "127.0.0.1:" + ports[1]
}

func TestNoRequestFailsOnItsWayToNginx(t *testing.T) {
	t.Parallel()
	http1, http2 := web(t)
	plain := func(t *testing.T, to string) *process {
		t.Helper()
		return start(t, "serve", "-c", proxying(t, to, "", "", ""))
	}
	secure := func(t *testing.T, to string) *process {
		t.Helper()
		return start(t, "serve", "-c", proxying(t, to, "", "tls: {development: true}", ""))
	}
	for _, test := range []struct {
		name    string
		levee   func(t *testing.T, to string) *process
		to      string
		command string // less the address
		scheme  string
		want    []string
		not     []string
	}{
		{"wrk", plain, http1, "wrk -t1 -c64 -d2s", "http", []string{"Requests/sec"}, []string{"Socket errors", "Non-2xx"}},
		{"ab, a connection each", plain, http1, "ab -q -n 5000 -c 32", "http", []string{"Complete requests:      5000\n", "Failed requests:        0\n"}, []string{"Non-2xx"}},
		{"ab, kept alive", plain, http1, "ab -q -k -n 20000 -c 32", "http", []string{"Complete requests:      20000\n", "Failed requests:        0\n"}, []string{"Non-2xx"}},
		{"h2load", plain, http2, "h2load -n 20000 -c 32 -m 16", "http", []string{"Application protocol: h2c\n", " 20000 succeeded, 0 failed, 0 errored, 0 timeout\n", "status codes: 20000 2xx"}, nil},
		{"wrk over TLS", secure, http1, "wrk -t1 -c64 -d2s", "https", []string{"Requests/sec"}, []string{"Socket errors", "Non-2xx"}},
		{"ab over TLS, a connection each", secure, http1, "ab -q -n 500 -c 16", "https", []string{"Complete requests:      500\n", "Failed requests:        0\n"}, []string{"Non-2xx"}},
		{"h2load over TLS", secure, http1, "h2load -n 10000 -c 32", "https", []string{" 10000 succeeded, 0 failed, 0 errored, 0 timeout\n", "status codes: 10000 2xx"}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			words := strings.Fields(test.command)
			need(t, words[0])
			p := test.levee(t, test.to)
			out, most := underLoad(t, p, words[0], append(words[1:], test.scheme+"://"+p.address()+"/")...)
			for _, want := range test.want {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in\n%s", want, out)
				}
			}
			for _, not := range test.not {
				if strings.Contains(out, not) {
					t.Error(out)
				}
			}
			if most == 0 {
				t.Error("no connection was seen")
			}
		})
	}
}

func TestCurlGetsItsPageOverTLS(t *testing.T) {
	t.Parallel()
	need(t, "curl")
	http1, _ := web(t)
	p := before(t, http1, "--tls", "dev")
	ca := p.find(&p.stderr, `clients need (\S+) to trust them`)
	out, err := client(t, "", "curl", "-sS", "--cacert", ca, "-w", "%{http_code} %{ssl_verify_result}", "https://"+p.address()+"/")
	if out != "a page from nginx\n200 0" || err != nil {
		t.Errorf("%q, %v", out, err)
	}
	if out, err := exec.Command("curl", "-sS", "http://"+p.address()+"/").CombinedOutput(); err == nil {
		t.Errorf("in plaintext: %q", out)
	}
}
