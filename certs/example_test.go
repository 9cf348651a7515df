package certs_test

import (
	"context"
	"crypto/tls"
	"fmt"
	stdlog "log"
	"os"
	"path/filepath"

	"github.com/levee-net/levee/certs"
)

// A server whose clients need certificates, and which notices when its own is renewed,
// or a client's revoked.
func ExampleServer() {
	dir, err := os.MkdirTemp("", "certs")
	if err != nil {
		stdlog.Fatal(err)
	}
	defer os.RemoveAll(dir)
	writeExampleFiles(dir)
	problem := func(err error) { stdlog.Print(err) }

	files := &certs.Files{
		Pairs:   []certs.Pair{{Cert: filepath.Join(dir, "db.pem"), Key: filepath.Join(dir, "db-key.pem")}},
		Problem: problem,
	}
	clients := &certs.Clients{
		CAs:     []string{filepath.Join(dir, "clients.pem")},
		URIs:    []string{"spiffe://example.com/billing/*"},
		Problem: problem,
	}
	for _, load := range []func() error{files.Load, clients.Load} {
		if err := load(); err != nil {
			stdlog.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go files.Watch(ctx)   // until ctx ends
	go clients.Watch(ctx) // until ctx ends

	server := &certs.Server{GetCertificate: files.GetCertificate, Clients: clients, ALPN: []string{"postgresql"}}
	config := server.Config() // for levee.Server.TLSConfig, or whatever takes one

	for _, c := range files.Certificates() {
		fmt.Println(c.Names, "by", c.Issuer, "for", config.NextProtos)
	}
	// Output: [db.example.com] by CN=example for [postgresql]
}

// DevelopmentCA needs no files at all.
func ExampleDevelopmentCA() {
	ca, err := certs.DevelopmentCA("") // or a folder, where it is kept
	if err != nil {
		stdlog.Fatal(err)
	}
	config := ca.ServerConfig()
	fmt.Println(tls.VersionName(config.MinVersion))
	// Output: TLS 1.2
}
