package route_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/servername"
	"github.com/levee-net/levee/leveetest"
	"github.com/levee-net/levee/route"
)

// helloOf returns the records of the hello that a client of that configuration sends first.
func helloOf(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	records := new(sent)
	if err := tls.Client(records, config).Handshake(); err != io.EOF {
		t.Fatal(err)
	}
	return records.Bytes()
}

// sent is a connection that keeps what is written, and on which nothing comes.
type sent struct{ bytes.Buffer }

func (*sent) Read([]byte) (int, error)         { return 0, io.EOF }
func (*sent) Close() error                     { return nil }
func (*sent) LocalAddr() net.Addr              { return nil }
func (*sent) RemoteAddr() net.Addr             { return nil }
func (*sent) SetDeadline(time.Time) error      { return nil }
func (*sent) SetReadDeadline(time.Time) error  { return nil }
func (*sent) SetWriteDeadline(time.Time) error { return nil }

// messageIn returns what handshake records carry.
func messageIn(records []byte) (message []byte) {
	for len(records) > 0 {
		size := 5 + int(binary.BigEndian.Uint16(records[3:]))
		message = append(message, records[5:size]...)
		records = records[size:]
	}
	return message
}

// record cuts a message into handshake records of random sizes.
func record(message []byte, most int, random *rand.Rand) (records []byte) {
	for len(message) > 0 {
		n := min(1+random.IntN(most), len(message))
		records = append(records, 22, 3, 1, byte(n>>8), byte(n))
		records, message = append(records, message[:n]...), message[n:]
	}
	return records
}

// clients are configurations of clients that differ in their hellos, all for name.
func clients(t testing.TB, ca *leveetest.CA, name string) map[string]*tls.Config {
	t.Helper()
	with := func(change func(c *tls.Config)) *tls.Config {
		c := ca.ClientConfig(name)
		change(c)
		return c
	}
	return map[string]*tls.Config{
		"TLS 1.2":   with(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }),
		"TLS 1.3":   with(func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} }),
		"hybrid":    with(func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768} }),
		"ALPN":      with(func(c *tls.Config) { c.NextProtos = []string{"h2", "http/1.1"} }),
		"of 16 KiB": with(func(c *tls.Config) { c.NextProtos = padding(16 << 10) }),
		"of 60 KiB": with(func(c *tls.Config) { c.NextProtos = padding(60 << 10) }),
		"ticket":    with(func(c *tls.Config) { c.ClientSessionCache = tls.NewLRUClientSessionCache(1) }),
		"1.2 and ticket": with(func(c *tls.Config) {
			c.MaxVersion, c.ClientSessionCache = tls.VersionTLS12, tls.NewLRUClientSessionCache(1)
		}),
	}
}

// padding returns protocols that make a hello so many bytes longer.
func padding(size int) (protocols []string) {
	for i := 0; i < size; i += 201 {
		protocols = append(protocols, fmt.Sprintf("%0200d", i))
	}
	return protocols
}

// A cutter is a client's connection that sends its hello in other records and segments
// than crypto/tls does.
type cutter struct {
	net.Conn
	random  *rand.Rand
	record  int // bytes at most
	segment int
	hello   []byte
	done    bool
}

func (c *cutter) Write(p []byte) (int, error) {
	if c.done {
		return c.Conn.Write(p)
	}
	c.hello = append(c.hello, p...) // crypto/tls writes record by record
	message := messageIn(c.hello)
	if len(message) < 4+int(binary.BigEndian.Uint32(message)&0xffffff) {
		return len(p), nil
	}
	c.done = true
	// 80 KiB with the records' headers is what a hello may have.
	records := record(message, max(c.record, 22*len(message)/(80<<10-len(message))), c.random)
	for rest := records; len(rest) > 0; {
		n := min(1+c.random.IntN(c.segment), len(rest))
		if _, err := c.Conn.Write(rest[:n]); err != nil {
			return 0, err
		}
		rest = rest[n:]
	}
	return len(p), nil
}

// byNames serves routes that are told apart by name, some of which let TLS pass.
func byNames(ca *leveetest.CA, names ...string) *route.Router {
	r := &route.Router{TLS: ca.ServerConfig("*.test"), RequireTLS: true}
	for _, name := range names {
		answer := named(name)
		r.Routes = append(r.Routes,
			route.Route{Match: route.SNI(name + ".test"), Handler: answer},
			route.Route{Match: route.SNI(name + ".through.test"), Handler: passing(ca, name), Passthrough: true})
	}
	return r
}

// passing is a handler that is itself a server of TLS, by crypto/tls alone.
func passing(ca *leveetest.CA, name string) levee.Handler {
	config := ca.ServerConfig("*.through.test")
	return levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
		inner := tls.Server(c, config)
		read, err := io.ReadAll(inner)
		if err != nil {
			return err
		}
		fmt.Fprintf(inner, "%s %q", name+" through", read)
		return inner.CloseWrite()
	})
}

// askTLS makes a handshake over c, sends a word and returns the answer.
func askTLS(c net.Conn, config *tls.Config) (string, error) {
	client := tls.Client(c, config)
	if _, err := io.WriteString(client, "hi"); err != nil {
		return "", err
	}
	client.CloseWrite()
	got, err := io.ReadAll(client)
	return string(got), err
}

func TestAHelloFindsItsRouteHoweverItIsCut(t *testing.T) {
	rounds := 130    // of eight clients each
	if raceEnabled { // a race would show in any of them, and what the cuts do is tried without the detector
		rounds = 26
	}
	ca := leveetest.NewCA(t)
	inMemory := leveetest.Listen()
	srv := &levee.Server{Handler: byNames(ca, "a", "b", "c")}
	go srv.Serve(context.Background(), inMemory)
	t.Cleanup(func() { srv.Close() })
	socket, err := levee.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	onSockets := &levee.Server{Handler: byNames(ca, "a", "b", "c")}
	go onSockets.Serve(context.Background(), socket)
	t.Cleanup(func() { onSockets.Close() })

	names := []string{"a", "b", "c", "a.through", "b.through", "c.through"}
	configs := make([]map[string]*tls.Config, len(names))
	for i, name := range names {
		configs[i] = clients(t, ca, name+".test")
	}
	random := rand.New(rand.NewPCG(1, 2))
	for round := range rounds {
		name := names[round%len(names)]
		for kind, config := range configs[round%len(names)] {
			dial := func() (net.Conn, error) { return inMemory.Dial(t.Context()) }
			if round%13 == 0 {
				dial = func() (net.Conn, error) { return net.Dial("tcp", socket.Addr().String()) }
			}
			raw, err := dial()
			if err != nil {
				t.Fatal(err)
			}
			c := &cutter{Conn: raw, random: random, record: 1 + random.IntN(1<<random.IntN(15)), segment: 1 + random.IntN(1<<random.IntN(15))}
			if round < len(names) {
				c.record, c.segment = 1, 1
			} else if strings.HasPrefix(kind, "of ") {
				c.segment += 100 // or most of the time goes into these
			}
			want := strings.Replace(name, ".", " ", 1) + ` "hi"`
			if got, err := askTLS(c, config); got != want || err != nil {
				t.Errorf("%s, %s, records of %d, segments of %d: %q, %v; want %q", name, kind, c.record, c.segment, got, err, want)
			}
			raw.Close()
		}
	}
}

// oracle is what crypto/tls makes of the bytes: a hello, or that there is none, or that
// there may be one once more has come.
func oracle(b []byte) (hello *tls.ClientHelloInfo, v route.Verdict) {
	done := errors.New("done")
	err := tls.Server(&replay{rest: b}, &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		hello = info
		return nil, done
	}}).Handshake()
	switch {
	case hello != nil:
		return hello, route.Yes
	case err == io.EOF, err == io.ErrUnexpectedEOF:
		return nil, route.More
	}
	return nil, route.No
}

// replay is a connection that has sent the rest.
type replay struct {
	sent
	rest []byte
}

func (r *replay) Read(p []byte) (int, error) {
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// interrupted reports whether other records than a handshake's lie between a hello's:
// crypto/tls would take alerts there.
func interrupted(b []byte) bool {
	for message := []byte(nil); len(message) < 4 || len(message) < 4+int(binary.BigEndian.Uint32(message)&0xffffff); {
		if b[0] != 22 {
			return true
		}
		size := 5 + int(binary.BigEndian.Uint16(b[3:]))
		message, b = append(message, b[5:size]...), b[size:]
	}
	return false
}

// checkHello compares what Hello says of b, come in segments, with crypto/tls.
func checkHello(t *testing.T, b []byte, segment int) {
	t.Helper()
	begun := new(route.Beginning)
	var hello *route.Hello
	v := route.More
	for seen := 0; seen < len(b) && v == route.More; {
		seen = min(len(b), seen+segment)
		begun.First = b[:seen]
		hello, v = begun.Hello()
	}
	info, want := oracle(b)
	switch {
	case want == route.Yes:
		name, err := servername.Normalize(info.ServerName)
		if err != nil || interrupted(b) {
			want = route.No
			break
		}
		if v == route.Yes && (hello.ServerName != name || !slices.Equal(hello.ALPN, info.SupportedProtos) || !slices.Equal(hello.Versions, info.SupportedVersions)) {
			t.Errorf("%x: %+v, want %q, %q, %x", b, hello, name, info.SupportedProtos, info.SupportedVersions)
		}
	case want == route.More && v == route.No:
		// It is refused before crypto/tls would: then nothing that follows can help.
		for _, more := range [][]byte{make([]byte, 100<<10), bytes.Repeat([]byte{22, 3, 3, 0, 1, 0}, 20_000)} {
			if _, later := oracle(append(slices.Clone(b), more...)); later == route.Yes && len(b) < 80<<10 {
				t.Errorf("%x is refused, and crypto/tls could take it", b)
			}
		}
		return
	case want == route.More && len(b) == 0:
		return
	}
	if v != want {
		t.Errorf("in segments of %d, %x: %v, want %v", segment, b, v, want)
	}
}

func FuzzHello(f *testing.F) {
	ca := leveetest.NewCA(f)
	random := rand.New(rand.NewPCG(3, 4))
	for kind, config := range clients(f, ca, "a.test") {
		if strings.HasPrefix(kind, "of ") {
			continue
		}
		hello := helloOf(f, config)
		f.Add(hello, byte(1))
		f.Add(record(messageIn(hello), 100, random), byte(50))
		f.Add(append(hello, hello...), byte(255))
		f.Add(hello[:len(hello)-1], byte(255))
	}
	for _, hello := range clientHellos(f) {
		f.Add(hello, byte(40))
	}
	for _, b := range []string{
		"", "\x16", "\x16\x03\x01\x00\x00", "\x16\x10\x01\x00\x01\x01", "\x16\x03\x01\x40\x01\x01", "\x16\x03\x01\x00\x01\x02", "\x15\x03\x01\x00\x02\x01\x00",
		"\x16\x03\x01\x00\x04\x01\x01\x00\x01", "\x16\x03\x01\x00\x04\x01\x01\x00\x00", "\x16\x03\x01\x00\x04\x01\x00\x00\x00", "\x80\x2e\x01\x03\x01", "GET / HTTP/1.1\r\n",
		"\x16\x03\x01\x00\x01\x01\x15\x03\x01\x00\x02\x01\x00\x16\x03\x01\x00\x03\x00\x00\x00",
	} {
		f.Add([]byte(b), byte(1))
	}
	f.Fuzz(func(t *testing.T, b []byte, segment byte) {
		if len(b) > 0 && b[0] != 22 { // that it is not TLS is all that is said then
			begun := &route.Beginning{First: b}
			if _, v := begun.Hello(); v != route.No || begun.Sealed() {
				t.Errorf("%x: %v", b, v)
			}
			return
		}
		checkHello(t, b, 1+int(segment))
	})
}

func TestAHelloIsWhatCryptoTLSSaysHoweverItIsCut(t *testing.T) {
	ca := leveetest.NewCA(t)
	random := rand.New(rand.NewPCG(5, 6))
	for _, config := range clients(t, ca, "A.b.Test") {
		message := messageIn(helloOf(t, config))
		for range 60 {
			most := 1 + random.IntN(1<<random.IntN(15))
			records := record(message, max(most, 22*len(message)/(80<<10-len(message))), random)
			checkHello(t, records, 1+random.IntN(1<<random.IntN(15)))
			checkHello(t, records[:random.IntN(len(records))], 1+random.IntN(2000))
			wrong := slices.Clone(records)
			wrong[random.IntN(min(len(wrong), 700))] ^= 1 << random.IntN(8)
			checkHello(t, wrong, 1+random.IntN(2000))
		}
	}
}

// helloWith returns the records of a hello with that extension and no other.
func helloWith(extension uint16, body string) []byte {
	b := append([]byte{3, 3}, make([]byte, 32)...)
	b = append(b, 0, 0, 2, 0x13, 0x01, 1, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(4+len(body)))
	b = binary.BigEndian.AppendUint16(b, extension)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	b = append(b, body...)
	message := append([]byte{1, 0, byte(len(b) >> 8), byte(len(b))}, b...)
	return append([]byte{22, 3, 1, byte(len(message) >> 8), byte(len(message))}, message...)
}

// nameList returns the body of a server_name extension.
func nameList(names ...string) string {
	var list []byte
	for _, name := range names {
		list = binary.BigEndian.AppendUint16(append(list, 0), uint16(len(name)))
		list = append(list, name...)
	}
	return string(binary.BigEndian.AppendUint16(nil, uint16(len(list)))) + string(list)
}

func TestTheServerNameIsTakenInOneFormOrNotAtAll(t *testing.T) {
	for sent, want := range map[string]string{"db.test": "db.test", "DB.Test": "db.test", "xn--bcher-kva.test": "xn--bcher-kva.test"} {
		b := &route.Beginning{First: helloWith(0, nameList(sent))}
		if hello, v := b.Hello(); v != route.Yes || hello.ServerName != want {
			t.Errorf("%q: %+v, %v", sent, hello, v)
		}
	}
	for what, body := range map[string]string{
		"an IPv4 address": nameList("192.0.2.7"), "an IPv6 address": nameList("2001:db8::1"), "a NUL": nameList("a.test\x00.b.test"),
		"letters outside ASCII": nameList("bücher.test"), "two names": nameList("a.test", "b.test"), "an empty name": nameList(""),
		"an empty list": nameList(), "a dot at the end": nameList("a.test."), "a wildcard": nameList("*.test"), "no list": "", "a list cut short": nameList("a.test")[:5],
	} {
		b := &route.Beginning{First: helloWith(0, body)}
		if hello, v := b.Hello(); v != route.No {
			t.Errorf("%s: %+v, %v", what, hello, v)
		}
	}
}

func TestAHelloHasToEndWithin80KiB(t *testing.T) {
	const most = 80 << 10
	endless := append([]byte("\x16\x03\x01\x00\x04\x01\x00\xff\xff"), bytes.Repeat([]byte("\x16\x03\x01\x00\x01\x01"), most/6)...)
	for n, want := range map[int]route.Verdict{most - 1: route.More, most: route.No} {
		if _, v := (&route.Beginning{First: endless[:n]}).Hello(); v != want {
			t.Errorf("%d bytes: %v, want %v", n, v, want)
		}
	}
}

// A hello that drips in costs each byte once.
func TestAHelloByteByByteCostsNoMoreThanItsBytes(t *testing.T) {
	ca := leveetest.NewCA(t)
	config := ca.ClientConfig("a.test")
	config.NextProtos = padding(60 << 10)
	hello := helloOf(t, config)
	begun := new(route.Beginning)
	allocations := testing.AllocsPerRun(10, func() { // whatever else the process does meanwhile is less than one a run
		*begun = route.Beginning{}
		for n := range hello {
			begun.First = hello[:n]
			if _, v := begun.Hello(); v != route.More {
				t.Fatalf("%d bytes of %d: %v", n, len(hello), v)
			}
		}
	})
	if allocations != 0 {
		t.Errorf("%v allocations", allocations)
	}
	b := &route.Beginning{First: hello}
	if _, v := b.Hello(); v != route.Yes {
		t.Error(v)
	}
}

func BenchmarkHello(b *testing.B) {
	ca := leveetest.NewCA(b)
	routes := []route.Matcher{route.SNI("a.test"), route.SNI("*.b.test"), route.ALPN("x"), route.SNI("c.test")}
	config := ca.ClientConfig("c.test")
	config.NextProtos = []string{"h2", "http/1.1"}
	hello := helloOf(b, config)
	b.ReportAllocs()
	b.SetBytes(int64(len(hello)))
	for b.Loop() {
		begun := &route.Beginning{First: hello}
		for i, match := range routes {
			if v := match(begun); v == route.Yes != (i == 3) {
				b.Fatal(i, v)
			}
		}
	}
}

func BenchmarkHelloOf60KiBByteByByte(b *testing.B) {
	ca := leveetest.NewCA(b)
	config := ca.ClientConfig("c.test")
	config.NextProtos = padding(60 << 10)
	hello := helloOf(b, config)
	b.ReportAllocs()
	b.SetBytes(int64(len(hello)))
	for b.Loop() {
		begun := new(route.Beginning)
		for n := range len(hello) + 1 {
			begun.First = hello[:n]
			begun.Hello()
		}
	}
}
