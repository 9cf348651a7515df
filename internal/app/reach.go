package app

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/levee-net/levee/internal/admin"
	"github.com/levee-net/levee/internal/config"
)

// adminFlags are a command's flags and those that say where a running levee is and how to be let in there.
func adminFlags(own ...cli.Flag) []cli.Flag {
	return append(
		append(own, adminFlag("admin", "ADMIN", "127.0.0.1:9180", "the running levee's admin `ADDR` (host:port, or unix:/path)")),
		keyFlags("ca")...,
	)
}

// keyFlags are those that say how to be let in, of which ca is the name of the authority's: a command may have one of its own.
func keyFlags(ca string) []cli.Flag {
	return []cli.Flag{
		adminFlag("token-file", "TOKEN_FILE", "", "the `FILE` with the token that it asks for"),
		adminFlag(ca, "CA", "", "the `FILE` of the authority of its certificate; or system: whom this machine believes. With it, it is asked over TLS"),
		adminFlag("cert", "CERT", "", "the `FILE` of a certificate to be let in with"),
		adminFlag("key", "KEY", "", "the `FILE` with that certificate's key"),
	}
}

func adminFlag(name, variable, def, usage string) cli.Flag {
	return &cli.StringFlag{Name: name, Value: def, Usage: usage, Sources: cli.EnvVars("LEVEE_" + variable), TakesFile: name != "admin", Local: true}
}

// A reached is a running levee, and how it lets one in.
type reached struct {
	address config.Address
	origin  string
	token   string
	http    http.Client
}

// reach finds the levee that the command line means. Nothing is dialled before it is asked.
func reach(c *cli.Command) (*reached, error) { return reachBy(c, "ca") }

// reachBy is reach for a command that has the authority's file by another name.
func reachBy(c *cli.Command, ca string) (*reached, error) {
	address, err := config.ParseAdminAddress(c.String("admin"))
	switch {
	case err != nil:
		return nil, usage(c, "%s: --admin: %v", c.Name, err)
	case address.Off():
		return nil, usage(c, "%s: --admin: where is it? write its address, such as 127.0.0.1:9180", c.Name)
	}
	// A name of the machine's own is refused, as a page could have one that leads there; that of localhost never is.
	there := &reached{address: address, origin: "http://localhost"}
	if file := c.String("token-file"); file != "" {
		there.token, err = admin.ReadToken(file)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil, exit(exitUsage, fmt.Errorf("--token-file: %w; it is the one that the running levee has as admin.token_file", err))
		case err != nil:
			return nil, exit(exitUsage, fmt.Errorf("--token-file: %w", err))
		}
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, address.Network, address.Address)
		},
		MaxIdleConnsPerHost: 2,
		IdleConnTimeout:     30 * time.Second,
	}
	if transport.TLSClientConfig, err = tlsToAdmin(c, ca, address); err != nil {
		return nil, err
	}
	if transport.TLSClientConfig != nil {
		there.origin = "https://localhost"
	}
	if there.token != "" && transport.TLSClientConfig == nil && !address.Loopback() {
		return nil, usage(c, "%s: --token-file: the token would go to %s in plaintext; say whose certificate it has with --%s", c.Name, address, ca)
	}
	there.http.Transport = transport
	there.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return there, nil
}

// tlsToAdmin returns nil for plaintext.
func tlsToAdmin(c *cli.Command, ca string, address config.Address) (*tls.Config, error) {
	authority, cert, key := c.String(ca), c.String("cert"), c.String("key")
	switch {
	case (cert == "") != (key == ""):
		return nil, usage(c, "%s: --cert and --key go together", c.Name)
	case authority == "" && cert != "":
		return nil, usage(c, "%s: --cert: certificates are for TLS; say whose certificate it has with --%s", c.Name, ca)
	case authority == "":
		return nil, nil
	}
	secure := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: "localhost"}
	if address.Network == "tcp" {
		if host, _, err := net.SplitHostPort(address.Address); err == nil && host != "" {
			secure.ServerName = host
		}
	}
	if authority == "system" {
		authority = ""
	}
	var err error
	if secure.RootCAs, err = rootsOf(authority); err != nil {
		return nil, exit(exitUsage, fmt.Errorf("--%s: %w", ca, err))
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, exit(exitUsage, fmt.Errorf("--cert: %w", err))
		}
		secure.Certificates = []tls.Certificate{pair}
	}
	return secure, nil
}

func (r *reached) close() { r.http.CloseIdleConnections() }

// do asks, and returns the answer, whatever it is; its body is to be closed. The context ends it also while that is read.
func (r *reached) do(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, r.origin+path, bytes.NewReader(body))
	if err != nil {
		return nil, exit(exitUsage, err)
	}
	if method == http.MethodPost { // also if there is nothing to say: it is what no page of another site can send
		request.Header.Set("Content-Type", "application/json")
	}
	if r.token != "" {
		request.Header.Set("Authorization", "Bearer "+r.token)
	}
	answer, err := r.http.Do(request)
	if err != nil {
		return nil, exit(exitNotStart, fmt.Errorf("no levee answers at %s: %w; is it running? its admin address is said with --admin", r.address, reasonOf(err)))
	}
	return answer, nil
}

// metrics asks for those.
func (r *reached) metrics(ctx context.Context) (*http.Response, error) {
	answer, err := r.do(ctx, http.MethodGet, "/metrics", nil)
	if err == nil && answer.StatusCode == http.StatusUnauthorized {
		_ = answer.Body.Close()
		return nil, exit(exitUsage, fmt.Errorf("metrics at %s: that takes the right token; name the file that has it with --token-file", r.address))
	}
	return answer, err
}

// reasonOf leaves out of an http.Client's error what has been said: URL and address.
func reasonOf(err error) error {
	if of, ok := errors.AsType[*url.Error](err); ok {
		err = of.Err
	}
	if of, ok := errors.AsType[*net.OpError](err); ok {
		err = of.Err
	}
	return err
}
