package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// everything is a configuration in which each part that has metrics is there. Nobody is behind its addresses.
const everything = `version: 1
admin: {listen: 127.0.0.1:0}
telemetry: {logs: {access: sampled, access_file: access.log}, traces: {otlp: "http://127.0.0.1:1"}}
redis: {address: 127.0.0.1:1}
limits: {deny: [192.0.2.66]}
listeners:
  - name: main
    listen: ["127.0.0.1:0"]
    tls: {mode: optional, certificates: [{cert: cert.pem, key: key.pem}]}
    routes: [{match: {protocol: http}, handler: hello}, {upstream: db}]
upstreams:
  - {name: db, servers: ["127.0.0.1:1"], dial: {tries: 1}}
`

const metricsHead = `# Metrics

Every metric of levee's own at ` + "`/metrics`" + `, with its labels, as a running levee has them. What to make of each stands in [Reading
levee](../guides/reading.md#the-metrics); alerts on them are in [deploy](../../deploy/README.md). Beside these there are Go's own (` + "`go_…`" + `) and the process's
(` + "`process_…`" + `).

Durations are in seconds, sizes in bytes. Histograms are classic and native at once. The values of a label are a bounded set, whatever strangers send: listeners, routes, upstreams and
servers are those of the configuration, reasons and phases [words of a closed set](../guides/reading.md#why-a-connection-ended).

| metric | kind | labels | what it is |
|---|---|---|---|
`

// metrics is the page of all metrics: what a levee says of itself that has everything.
func metrics(ctx context.Context, levee string) (string, error) {
	scrape, err := scraped(ctx, levee)
	if err != nil {
		return "", err
	}
	families := familiesOf(scrape)
	var b strings.Builder
	b.WriteString(metricsHead)
	for _, name := range slices.Sorted(maps.Keys(families)) {
		f := families[name]
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", code(name), f.kind, strings.Join(slices.Sorted(maps.Keys(f.labels)), ", "), cell(f.help))
	}
	return b.String(), nil
}

type family struct {
	kind, help string
	labels     map[string]bool // in code, as they are written
}

var (
	sample = regexp.MustCompile(`^(levee_\w+?)(?:_bucket|_sum|_count)?(?:\{(.*)\})? `)
	label  = regexp.MustCompile(`(\w+)="`)
)

// familiesOf reads Prometheus's text.
func familiesOf(scrape []byte) map[string]*family {
	all := make(map[string]*family)
	of := func(name string) *family {
		if all[name] == nil {
			all[name] = &family{labels: make(map[string]bool)}
		}
		return all[name]
	}
	for line := range strings.Lines(string(scrape)) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "# HELP levee_"); ok {
			name, help, _ := strings.Cut(rest, " ")
			of("levee_" + name).help = help
		} else if rest, ok := strings.CutPrefix(line, "# TYPE levee_"); ok {
			name, kind, _ := strings.Cut(rest, " ")
			of("levee_" + name).kind = kind
		} else if m := sample.FindStringSubmatch(line); m != nil {
			f := all[m[1]]
			if f == nil { // its name ends in a word that a histogram adds to others
				f = of(strings.TrimSuffix(line[:strings.IndexAny(line, "{ ")], " "))
			}
			for _, l := range label.FindAllStringSubmatch(m[2], -1) {
				if l[1] != "le" {
					f.labels[code(l[1])] = true
				}
			}
		}
	}
	return all
}

// scraped starts a levee that has everything, connects to it, and returns its metrics.
func scraped(ctx context.Context, levee string) (scrape []byte, err error) {
	dir, err := os.MkdirTemp("", "levee-metrics-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := writeCertificate(dir); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "levee.yaml"), []byte(everything), 0o600); err != nil {
		return nil, err
	}
	ctx, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	cmd := exec.CommandContext(ctx, levee, "serve", "-c", "levee.yaml")
	cmd.Dir = dir
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	log, end, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = end, end
	err = cmd.Start()
	_ = end.Close() // it has its own
	if err != nil {
		return nil, err
	}
	defer func() {
		stop()
		_ = cmd.Wait() // that it was told to end is no news
	}()
	address, admin, err := whereabouts(log)
	if err != nil {
		return nil, err
	}
	return visit(ctx, address, admin)
}

// whereabouts reads where levee listens, and goes on reading so that it can write.
func whereabouts(log io.Reader) (address, admin string, err error) {
	lines := bufio.NewScanner(log)
	var all bytes.Buffer
	for admin == "" && lines.Scan() {
		fmt.Fprintln(&all, lines.Text())
		if rest, ok := strings.CutPrefix(lines.Text(), "Listening on "); ok {
			address = rest
		}
		if rest, ok := strings.CutPrefix(lines.Text(), "Metrics on "); ok {
			admin = rest
		}
	}
	if admin == "" {
		return "", "", fmt.Errorf("levee did not start:\n%s", all.String())
	}
	go func() { _, _ = io.Copy(io.Discard, log) }() // until levee ends
	return address, admin, nil
}

// visit leaves a trace in the metrics that only connections make, and returns them.
func visit(ctx context.Context, address, metrics string) ([]byte, error) {
	trusting := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // it is the levee that was started here
	}}
	for _, url := range []string{"http://" + address, "https://" + address} {
		if _, err := fetched(ctx, trusting, url); err != nil {
			return nil, err
		}
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("to an upstream that is not there\n")); err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		return nil, err
	}
	return fetched(ctx, trusting, metrics)
}

func fetched(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	return io.ReadAll(answer.Body)
}

// writeCertificate borrows the one that net/http/httptest has.
func writeCertificate(dir string) error {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	certificate := server.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		return err
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]})
	if err := os.WriteFile(filepath.Join(dir, "cert.pem"), cert, 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600)
}
