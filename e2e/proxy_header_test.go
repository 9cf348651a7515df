package e2e

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// clientIP is where the clients here come from, and nobody else.
const clientIP = "127.0.0.5"

// askFrom asks for http://address/ from clientIP, or https if there is a configuration
// for that, and returns the answer and the address that the client had.
func askFrom(t *testing.T, address string, secure *tls.Config) (body string, header http.Header, local string, err error) {
	t.Helper()
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(clientIP)}, Timeout: patience}
	c, err := from.DialContext(t.Context(), "tcp", address)
	if err != nil {
		return "", nil, "", err
	}
	local = c.LocalAddr().String()
	if secure != nil {
		c = tls.Client(c, secure)
	}
	connect := func(string, string) (net.Conn, error) { return c, nil }
	asker := &http.Client{Timeout: patience, Transport: &http.Transport{Dial: connect, DisableKeepAlives: true}} //nolint:staticcheck // it is connected already
	answer, err := asker.Get("http://" + address + "/")
	if err != nil {
		return "", nil, local, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	return string(text), answer.Header, local, err
}

// TestClientsAddressArrives goes from HAProxy and nginx, in all versions that they have
// of the PROXY header, through levee, to HAProxy and nginx, in both versions.
func TestClientsAddressArrives(t *testing.T) {
	t.Parallel()
	const haproxy = "/usr/sbin/haproxy"
	need(t, haproxy)

	receivers := freePorts(t, 2)
	var listeners, upstreams strings.Builder
	paths := []string{"nginx v1", "nginx v2", "HAProxy v1", "HAProxy v2"}
	for i, path := range paths {
		fmt.Fprintf(&listeners, "  - {name: to-%d, listen: [\"127.0.0.1:0\"], proxy_protocol: {from: [127.0.0.1/32]}, routes: [{upstream: to-%d}]}\n", i, i)
		fmt.Fprintf(&upstreams, "  - {name: to-%d, servers: [\"127.0.0.1:%s\"], send_proxy: %s}\n", i, receivers[i/2], path[len(path)-2:])
	}
	fmt.Fprintf(&listeners, "  - {name: secure, listen: [\"127.0.0.1:0\"], tls: {development: true}, routes: [{upstream: to-3}]}\n")
	p := start(t, "serve", "-c", write(t, "levee.yaml", "version: 1\nadmin: {listen: 127.0.0.1:0}\nlisteners:\n"+listeners.String()+"upstreams:\n"+upstreams.String()))
	p.find(&p.stdout, `^Metrics on `)
	addresses := strings.Fields(strings.ReplaceAll(p.stdout.String(), "Listening on ", ""))[:5]

	senders := []struct{ name, how string }{
		{"HAProxy v1", "send-proxy"},
		{"HAProxy v2", "send-proxy-v2"},
		{"HAProxy v2 with TLVs", "send-proxy-v2 proxy-v2-options crc32c,unique-id"},
		{"nginx v1", ""},
	}
	ports := freePorts(t, len(senders)*len(paths))
	var ha, stream strings.Builder
	for i, port := range ports {
		sender, to := senders[i/len(paths)], addresses[i%len(paths)]
		if sender.how == "" {
			fmt.Fprintf(&stream, "server { listen 127.0.0.1:%s; proxy_pass %s; proxy_protocol on; }\n", port, to)
			continue
		}
		fmt.Fprintf(&ha, "listen from-%d\n  bind 127.0.0.1:%s\n  unique-id-format %%[uuid()]\n  server levee %s %s\n", i, port, to, sender.how)
	}
	nginx(t, receivers[0], `
http {
	server {
		listen 127.0.0.1:`+receivers[0]+` proxy_protocol;
		location / { return 200 "$proxy_protocol_addr:$proxy_protocol_port"; }
	}
}
stream {
`+stream.String()+`}
`)
	listening(t, receivers[1], exec.Command(haproxy, "-db", "-f", write(t, "haproxy.cfg", `
defaults
  mode tcp
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend receiver
  mode http
  bind 127.0.0.1:`+receivers[1]+` accept-proxy
  http-request return status 200 content-type text/plain hdr authority %[fc_pp_authority] hdr unique %[fc_pp_unique_id,hex] lf-string %[src]:%[src_port]
`+ha.String())))

	for i, port := range ports {
		name := senders[i/len(paths)].name + " to " + paths[i%len(paths)]
		body, header, local, err := askFrom(t, "127.0.0.1:"+port, nil)
		if body != local || err != nil {
			t.Errorf("%s: %q, want %s (%v)", name, body, local, err)
		}
		if strings.HasSuffix(name, "to HAProxy v2") && len(header.Get("unique")) != 32 {
			t.Errorf("%s: its unique id is %q", name, header.Get("unique"))
		}
	}

	roots := rootsOf(t, p.find(&p.stderr, `clients need (\S+) to trust them`))
	body, header, local, err := askFrom(t, addresses[4], &tls.Config{RootCAs: roots, ServerName: "localhost"})
	if body != local || header.Get("authority") != "localhost" || err != nil {
		t.Errorf("over TLS: %q of %q, want %s (%v)", body, header.Get("authority"), local, err)
	}

	// A header is required from those that are listed, and refused from all others.
	for name, test := range map[string]struct{ from, sends string }{
		"without the header that it owes": {"127.0.0.1", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"},
		"with a header that it may not":   {clientIP, "PROXY TCP4 192.0.2.7 127.0.0.1 1 2\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n"},
	} {
		from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(test.from)}, Timeout: patience}
		c, err := from.DialContext(t.Context(), "tcp", addresses[0])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		send(t, c, test.sends)
		answer, err := io.ReadAll(c)
		if strings.HasPrefix(string(answer), "HTTP/1.1 200") || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %q, %v", name, answer, err)
		}
	}
}
