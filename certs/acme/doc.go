// Package acme has certificates issued, and renewed, by an authority that speaks ACME
// (RFC 8555), such as Let's Encrypt.
//
//	source := &acme.Source{
//		Domains: []string{"db.example.com"},
//		Email:   "ops@example.com",
//		Agreed:  true, // to the authority's terms of service
//		Folder:  "/var/lib/levee/acme",
//		Problem: warn,
//	}
//	if err := source.Load(); err != nil {
//		return err
//	}
//	go source.Run(ctx) // has what is missing issued, and renews it, until ctx ends
//
//	server := &certs.Server{GetCertificate: source.GetCertificate}
//	srv := &levee.Server{Handler: h, TLSConfig: source.Answering(server.Config())}
//
// Its secret is how the authority is convinced, and when. Nothing waits for it: the server
// starts with what the storage has, clients of a name without a certificate are refused
// until there is one, and a renewal ends no connection. And nobody else can set it going:
// certificates are ordered for [Source.Domains], and never because a client has asked for a
// name.
//
// The default proof is TLS-ALPN-01 (RFC 8737), on the very port that serves:
// [Source.Answering] sees to it, without the configuration's own protocols changing for
// anybody. [Source.HTTPHandler] is the one for HTTP-01, and [Source.DNS] for DNS-01, which
// is what wildcards need. With a storage that machines share, of which redisstorage is one,
// they share certificates, one of them orders, and each answers for every other.
package acme
