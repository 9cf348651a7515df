package acme_test

import (
	"context"
	"fmt"
	stdlog "log"
	"net/http"
	"os"
	"time"

	"github.com/levee-net/levee/certs"
	"github.com/levee-net/levee/certs/acme"
)

// A server that has its certificates issued by a private authority, which may come by
// TLS-ALPN-01 and by HTTP-01.
func Example() {
	folder, err := os.MkdirTemp("", "acme")
	if err != nil {
		stdlog.Fatal(err)
	}
	defer os.RemoveAll(folder)

	source := &acme.Source{
		Domains:    []string{"db.example.com", "DB.Example.org."},
		Email:      "ops@example.com",
		Agreed:     true,
		Directory:  "https://ca.internal.example/acme/directory",
		Folder:     folder,
		Challenges: []acme.Challenge{acme.TLSALPN01, acme.HTTP01},
		Problem:    func(err error) { stdlog.Print(err) },
	}
	if err := source.Load(); err != nil {
		stdlog.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	stop()          // an example has no authority: this one ends at once
	source.Run(ctx) // with go, in a program

	server := &certs.Server{GetCertificate: source.GetCertificate, ALPN: []string{"postgresql"}}
	config := source.Answering(server.Config()) // for levee.Server.TLSConfig
	web := &http.Server{Addr: ":80", Handler: source.HTTPHandler(), ReadHeaderTimeout: 5 * time.Second}

	for _, c := range source.Certificates() {
		fmt.Println(c.Name, c.State)
	}
	fmt.Println(config.NextProtos, web.Addr, web.Handler != nil, web.ReadHeaderTimeout)
	// Output:
	// db.example.com missing
	// db.example.org missing
	// [postgresql] :80 true 5s
}
