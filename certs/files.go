package certs

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
)

// A Pair names the PEM files of a certificate, leaf first and intermediates after
// it, and of its private key.
type Pair struct {
	Cert, Key string
}

// Files returns a hardened server configuration with the certificates in the
// files. A client that names no server gets the first of them that it can use;
// one that names a server for which there is none is refused
// (unrecognized_name, RFC 6066 section 3), rather than shown another's.
//
// The files are read once. The error says which of them is at fault.
func Files(pairs ...Pair) (*tls.Config, error) {
	if len(pairs) == 0 {
		return nil, errors.New("no certificate given")
	}
	certificates := make([]tls.Certificate, 0, len(pairs))
	for _, p := range pairs {
		certificate, err := p.load()
		if err != nil {
			return nil, err
		}
		certificates = append(certificates, certificate)
	}
	config := hardened()
	config.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		var reason error
		for i := range certificates {
			if reason = hello.SupportsCertificate(&certificates[i]); reason == nil {
				return &certificates[i], nil
			}
		}
		return nil, fmt.Errorf("no certificate for this client: %w", reason)
	}
	return config, nil
}

func (p Pair) load() (tls.Certificate, error) {
	cert, err := os.ReadFile(p.Cert)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate: %w", err)
	}
	key, err := os.ReadFile(p.Key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate key: %w", err)
	}
	certificate, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate %s with key %s: %w", p.Cert, p.Key, err)
	}
	return certificate, nil
}

// hardened is what every configuration here starts from. TLS 1.2 is the least,
// 1.3 and its post-quantum hybrid key exchange are preferred, as in crypto/tls;
// renegotiation does not exist for its servers.
func hardened() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12}
}
