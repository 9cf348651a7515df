package e2e

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/levee-net/levee/route"
)

var update = flag.Bool("update", false, "keep the hellos of the clients that are installed for the tests of package route")

// helloName is the server that the clients ask for.
const helloName = "db.example.com"

// A tlsClient is a client that begins a handshake with a port of this machine.
type tlsClient struct {
	program string   // that has to be installed; empty for Go
	version []string // what tells its version
	command func(t *testing.T, port string) *exec.Cmd
	alpn    []string
}

// tlsClients are of five implementations of TLS, and curl, which uses one of them in its own way.
var tlsClients = map[string]tlsClient{
	"openssl": {
		"openssl",
		[]string{"openssl", "version"},
		func(_ *testing.T, port string) *exec.Cmd {
			return exec.Command("openssl", "s_client", "-connect", "127.0.0.1:"+port, "-servername", helloName, "-alpn", "postgresql")
		},
		[]string{"postgresql"},
	},
	"curl": {
		"curl",
		[]string{"curl", "--version"},
		func(_ *testing.T, port string) *exec.Cmd {
			return exec.Command("curl", "-s", "--resolve", helloName+":"+port+":127.0.0.1", "https://"+helloName+":"+port+"/")
		},
		[]string{"h2", "http/1.1"},
	},
	"gnutls": {
		"gnutls-cli",
		[]string{"gnutls-cli", "--version"},
		func(_ *testing.T, port string) *exec.Cmd {
			return exec.Command("gnutls-cli", "-p", port, "--sni-hostname="+helloName, "--alpn=h2", "--insecure", "127.0.0.1")
		},
		[]string{"h2"},
	},
	"nss": {
		"tstclnt",
		[]string{"dpkg-query", "-W", "libnss3"},
		func(_ *testing.T, port string) *exec.Cmd {
			return exec.Command("tstclnt", "-h", "127.0.0.1", "-p", port, "-a", helloName, "-D", "-o")
		},
		nil,
	},
	"mbedtls": {
		"gcc",
		[]string{"dpkg-query", "-W", "libmbedtls-dev"},
		func(t *testing.T, port string) *exec.Cmd { return exec.Command(mbedTLS(t), port) },
		[]string{"mqtt"},
	},
	"go": {
		"", nil, nil, []string{"h2", "http/1.1"},
	},
}

// mbedTLS builds a client of mbed TLS, which has none of its own in Debian.
func mbedTLS(t *testing.T) (program string) {
	t.Helper()
	const source = `
#include <mbedtls/ctr_drbg.h>
#include <mbedtls/entropy.h>
#include <mbedtls/net_sockets.h>
#include <mbedtls/ssl.h>

int main(int argc, char **argv)
{
	const char *alpn[] = {"mqtt", NULL};
	mbedtls_net_context net;
	mbedtls_ssl_context ssl;
	mbedtls_ssl_config conf;
	mbedtls_ctr_drbg_context random;
	mbedtls_entropy_context entropy;

	if (argc != 2)
		return 2;
	mbedtls_net_init(&net);
	mbedtls_ssl_init(&ssl);
	mbedtls_ssl_config_init(&conf);
	mbedtls_ctr_drbg_init(&random);
	mbedtls_entropy_init(&entropy);
	if (mbedtls_ctr_drbg_seed(&random, mbedtls_entropy_func, &entropy, NULL, 0) ||
	    mbedtls_net_connect(&net, "127.0.0.1", argv[1], MBEDTLS_NET_PROTO_TCP) ||
	    mbedtls_ssl_config_defaults(&conf, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_STREAM, MBEDTLS_SSL_PRESET_DEFAULT) ||
	    mbedtls_ssl_conf_alpn_protocols(&conf, alpn))
		return 3;
	mbedtls_ssl_conf_authmode(&conf, MBEDTLS_SSL_VERIFY_NONE);
	mbedtls_ssl_conf_rng(&conf, mbedtls_ctr_drbg_random, &random);
	if (mbedtls_ssl_setup(&ssl, &conf) || mbedtls_ssl_set_hostname(&ssl, "` + helloName + `"))
		return 3;
	mbedtls_ssl_set_bio(&ssl, &net, mbedtls_net_send, mbedtls_net_recv, NULL);
	mbedtls_ssl_handshake(&ssl);
	return 0;
}
`
	if _, err := os.Stat("/usr/include/mbedtls/ssl.h"); err != nil {
		t.Skip("skipped: libmbedtls-dev is not installed")
	}
	program = filepath.Join(t.TempDir(), "client")
	run(t, "gcc", "-o", program, write(t, "client.c", source), "-lmbedtls", "-lmbedx509", "-lmbedcrypto")
	return program
}

// hello has the client begin, and returns what it sends.
func (c *tlsClient) hello(t *testing.T) []byte {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c.begin(t, l.Addr().String())
	_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	b := new(route.Beginning)
	for buffer := make([]byte, 4<<10); ; {
		n, err := conn.Read(buffer)
		b.First = append(b.First, buffer[:n]...)
		switch _, v := b.Hello(); {
		case v == route.Yes:
			return b.First
		case v == route.No || err != nil:
			t.Fatalf("%x is no hello: %v", b.First, err)
		}
	}
}

// begin starts the client, and has it end with the test.
func (c *tlsClient) begin(t *testing.T, address string) {
	t.Helper()
	if c.program != "" {
		need(t, c.program)
		launch(t, c.command(t, portOf(t, address)))
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { // ends with ctx
		defer close(ended)
		dialer := tls.Dialer{Config: &tls.Config{
			ServerName: helloName, NextProtos: c.alpn, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768, tls.X25519},
		}}
		_, _ = dialer.DialContext(ctx, "tcp", address) // nobody answers
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
}

// recut cuts what handshake records carry into others, of random sizes.
func recut(records []byte, most int, random *rand.Rand) (cut []byte) {
	var message []byte
	for len(records) > 0 {
		size := 5 + int(binary.BigEndian.Uint16(records[3:]))
		message, records = append(message, records[5:size]...), records[size:]
	}
	for len(message) > 0 {
		n := min(1+random.IntN(most), len(message))
		cut = append(cut, 22, 3, 1, byte(n>>8), byte(n))
		cut, message = append(cut, message[:n]...), message[n:]
	}
	return cut
}

func TestHellosOfFiveImplementationsAreUnderstoodHoweverTheyAreCut(t *testing.T) {
	t.Parallel()
	var table strings.Builder
	for _, name := range []string{"openssl", "curl", "gnutls", "nss", "mbedtls", "go"} {
		t.Run(name, func(t *testing.T) {
			c := tlsClients[name]
			sent := c.hello(t)
			random := rand.New(rand.NewPCG(7, 8))
			for range 1000 {
				b, cut, segment := new(route.Beginning), recut(sent, 1+random.IntN(2000), random), 1+random.IntN(500)
				hello, v := b.Hello()
				for n := 0; n < len(cut) && v == route.More; {
					n = min(n+segment, len(cut))
					b.First = cut[:n]
					hello, v = b.Hello()
				}
				if v != route.Yes || hello.ServerName != helloName || !slices.Equal(hello.ALPN, c.alpn) {
					t.Fatalf("%x: %+v, %v", cut, hello, v)
				}
			}
			if *update {
				keepHello(t, name, sent)
				fmt.Fprintf(&table, "| `%s.bin` | %s | %s |\n", name, c.versionOf(t), c.commandLine())
			}
		})
	}
	if *update && !t.Failed() {
		text := "# What TLS clients send first\n\nBytes of the wire, as they came. `go test -C e2e -run TestHellos . -update` takes them anew from the clients that are installed,\nand writes this page.\n\n| file | client | how |\n|---|---|---|\n" + table.String()
		if err := os.WriteFile(filepath.Join(helloFolder, "README.md"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

const helloFolder = "../route/testdata/hellos"

func keepHello(t *testing.T, name string, hello []byte) {
	t.Helper()
	if err := os.MkdirAll(helloFolder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(helloFolder, name+".bin"), hello, 0o644); err != nil {
		t.Fatal(err)
	}
}

func (c *tlsClient) versionOf(t *testing.T) string {
	t.Helper()
	if c.version == nil {
		return "crypto/tls of " + runtime.Version() + ", with X25519MLKEM768"
	}
	first, _, _ := strings.Cut(run(t, c.version[0], c.version[1:]...), "\n")
	return strings.ReplaceAll(strings.TrimSpace(first), "\t", " ")
}

func (c *tlsClient) commandLine() string {
	switch c.program {
	case "":
		return "`tls.Dialer`"
	case "gcc":
		return "a program of a page, built by the test"
	}
	return "`" + strings.Join(c.command(nil, "PORT").Args, " ") + "`"
}
