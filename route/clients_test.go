package route_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/route"
)

// clientHellos returns what clients of several implementations of TLS have sent, all to
// db.example.com: see testdata/hellos.
func clientHellos(t testing.TB) map[string][]byte {
	t.Helper()
	files, _ := filepath.Glob("testdata/hellos/*.bin")
	hellos := make(map[string][]byte)
	for _, file := range files {
		hello, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		hellos[strings.TrimSuffix(filepath.Base(file), ".bin")] = hello
	}
	if len(hellos) < 5 {
		t.Fatalf("the hellos of only %d clients", len(hellos))
	}
	return hellos
}

// grown returns a hello that is about size bytes longer by an extension that nobody knows.
func grown(hello []byte, size int) []byte {
	message := messageIn(hello)
	at := 4 + 2 + 32             // behind the header, the version and the random bytes
	at += 1 + int(message[at])   // the session's id
	at += 2 + be16(message[at:]) // cipher suites
	at += 1 + int(message[at])   // compression
	extensions := message[at+2:]
	if last := lastExtension(extensions); last == 41 { // pre_shared_key has to stay the last
		panic("a hello that resumes a session")
	}
	extensions = append(slices.Clone(extensions), 0xfe, 0x77, byte(size>>8), byte(size))
	extensions = append(extensions, make([]byte, size)...)
	grown := append(slices.Clone(message[:at]), byte(len(extensions)>>8), byte(len(extensions)))
	grown = append(grown, extensions...)
	length := len(grown) - 4
	grown[1], grown[2], grown[3] = byte(length>>16), byte(length>>8), byte(length)
	return grown
}

func be16(b []byte) int { return int(b[0])<<8 | int(b[1]) }

// lastExtension returns the last one's type.
func lastExtension(b []byte) (last int) {
	for len(b) > 0 {
		last = be16(b)
		b = b[4+be16(b[2:]):]
	}
	return last
}

// ofWire is a handler that answers with its name and how many bytes there were.
func ofWire(name string) levee.Handler {
	return levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
		n, err := io.Copy(io.Discard, c)
		fmt.Fprintf(c, "%s %d", name, n)
		return err
	})
}

// There is one route for a client's hello, of up to 64 KiB, in whatever records and
// segments it comes.
func TestAClientsHelloFindsOneRouteHoweverItIsCut(t *testing.T) {
	rounds := 1000
	if raceEnabled { // a race would show in any of them, and what the cuts do is tried without the detector
		rounds = 100 // the last of which is the longest
	}
	for client, sent := range clientHellos(t) {
		t.Run(client, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := serveRoutes(t, &route.Router{RequireTLS: true, Routes: []route.Route{
					{Match: route.SNI("b.example.com", "*.db.example.com", "example.com"), Passthrough: true, Handler: ofWire("another's")},
					{Match: route.SNI("db.example.com"), Passthrough: true, Handler: ofWire("db")},
					{Passthrough: true, Handler: ofWire("else")},
				}})
				random := rand.New(rand.NewPCG(9, 10))
				for round := range rounds {
					message := messageIn(sent)
					switch {
					case round%100 == 99:
						message = grown(sent, 64<<10-len(message)-10) // as long as crypto/tls takes them
					case round%10 == 9:
						message = grown(sent, random.IntN(16<<10))
					}
					most, segment := 1+random.IntN(1<<random.IntN(15)), 1+random.IntN(1<<random.IntN(15))
					if round < 5 {
						most, segment = 1+round%2, 1
					}
					if len(message) > 3000 { // 80 KiB with the records' headers is the limit; and segments of a byte have been
						most, segment = max(most, 22*len(message)/(80<<10-len(message))), segment+100
					}
					records := record(message, most, random)
					if got, want := inSegments(t, s, records, segment), fmt.Sprintf("db %d", len(records)); got != want {
						t.Fatalf("round %d, records of %d, segments of %d: %q, want %q", round, most, segment, got, want)
					}
				}
			})
		})
	}
}

// inSegments sends b so, and returns the answer.
func inSegments(t *testing.T, s *server, b []byte, segment int) string {
	t.Helper()
	c, err := s.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for piece := range slices.Chunk(b, segment) {
		if _, err := c.Write(piece); err != nil {
			break // the answer tells
		}
		synctest.Wait()
	}
	c.CloseWrite()
	got, _ := io.ReadAll(c)
	<-s.ends
	return string(got)
}

// BenchmarkRoute is from a client's hello, in the segments that a network makes of it, to
// the route: what a router does of its own, without the connection's coming and going.
func BenchmarkRoute(b *testing.B) {
	hellos := clientHellos(b)
	var names []string
	for name := range hellos {
		names = append(names, name)
	}
	slices.Sort(names)
	routes := []route.Matcher{
		route.SNI("a.example.com"), route.SNI("*.shop.example.com"), route.ALPN("acme-tls/1"), route.SNI("b.example.com", "c.example.com"),
		route.SNIRegexp(`tenant-[0-9]+\.example\.com`), route.SNI("db.example.com"),
	}
	for _, name := range names {
		b.Run(name, func(b *testing.B) {
			hello := hellos[name]
			const segment = 1448
			b.ReportAllocs()
			b.SetBytes(int64(len(hello)))
			for b.Loop() {
				begun := new(route.Beginning)
				for n := 0; n < len(hello); {
					n = min(n+segment, len(hello))
					begun.First = hello[:n]
					if _, v := begun.Hello(); v == route.Yes != (n == len(hello)) {
						b.Fatal(v)
					}
				}
				for i, match := range routes {
					if v := match(begun); v == route.Yes != (i == len(routes)-1) {
						b.Fatal(i, v)
					}
				}
			}
		})
	}
}
