package app

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
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
	flag := func(name, def, usage string) cli.Flag {
		variable := "LEVEE_" + map[string]string{"admin": "ADMIN", "token-file": "TOKEN_FILE", "ca": "CA", "cert": "CERT", "key": "KEY"}[name]
		return &cli.StringFlag{Name: name, Value: def, Usage: usage, Sources: cli.EnvVars(variable), TakesFile: name != "admin", Local: true}
	}
	return append(
		own,
		flag("admin", "127.0.0.1:9180", "the running levee's admin `ADDR` (host:port, or unix:/path)"),
		flag("token-file", "", "the `FILE` with the token that it asks for"),
		flag("ca", "", "the `FILE` of the authority of its certificate; or system: whom this machine believes. With it, it is asked over TLS"),
		flag("cert", "", "the `FILE` of a certificate to be let in with"),
		flag("key", "", "the `FILE` with that certificate's key"),
	)
}

// A reached is a running levee, and how it lets one in.
type reached struct {
	address config.Address
	origin  string
	token   string
	http    http.Client
}

// reach finds the levee that the command line means. Nothing is dialled before it is asked.
func reach(c *cli.Command) (*reached, error) {
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
		if there.token, err = admin.ReadToken(file); err != nil {
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
	if transport.TLSClientConfig, err = tlsToAdmin(c, address); err != nil {
		return nil, err
	}
	if transport.TLSClientConfig != nil {
		there.origin = "https://localhost"
	}
	if there.token != "" && transport.TLSClientConfig == nil && !address.Loopback() {
		return nil, usage(c, "%s: --token-file: the token would go to %s in plaintext; say whose certificate it has with --ca", c.Name, address)
	}
	there.http.Transport = transport
	there.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return there, nil
}

// tlsToAdmin returns nil for plaintext.
func tlsToAdmin(c *cli.Command, address config.Address) (*tls.Config, error) {
	authority, cert, key := c.String("ca"), c.String("cert"), c.String("key")
	switch {
	case (cert == "") != (key == ""):
		return nil, usage(c, "%s: --cert and --key go together", c.Name)
	case authority == "" && cert != "":
		return nil, usage(c, "%s: --cert: certificates are for TLS; say whose certificate it has with --ca", c.Name)
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
		return nil, exit(exitUsage, fmt.Errorf("--ca: %w", err))
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
