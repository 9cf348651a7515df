// Package certs makes server TLS configurations that are safe as they come, and keep
// themselves current.
//
//	files := &certs.Files{Pairs: []certs.Pair{{Cert: "tls.crt", Key: "tls.key"}}, Problem: warn}
//	if err := files.Load(); err != nil {
//		return err // certificate tls.crt with key tls.key: tls: private key does not match public key
//	}
//	go files.Watch(ctx) // a renewed certificate is shown to whoever comes next, until ctx ends
//
//	server := &certs.Server{GetCertificate: files.GetCertificate}
//	srv := &levee.Server{Handler: h, TLSConfig: server.Config()}
//
// Its secret is what may change under a running server, and what may not. [Files],
// [Clients] and [Tickets] are loaded whole or not at all; with a mistake in their files,
// the server does not start, and one that runs stays as it was and says so. A change
// goes for the next handshake, also for one that resumes a session, and never ends a
// connection.
//
// For a server that asks for client certificates, there is a policy:
//
//	clients := &certs.Clients{CAs: []string{"clients.pem"}, URIs: []string{"spiffe://example.com/billing/*"}}
//
// And for a developer's machine there is [DevelopmentCA], with a certificate for every
// name.
package certs
