package levee_test

import (
	"net"
	"testing"

	"github.com/levee-net/levee"
	"golang.org/x/sys/unix"
)

// nobody is a Gate that lets nobody in.
type nobody struct{}

func (nobody) Admit(*levee.Conn) (levee.Pass, *levee.Refusal) { return nil, limited }

// everybody is a Gate that lets everybody in, with a pass or without.
type everybody struct{ pass levee.Pass }

func (e everybody) Admit(*levee.Conn) (levee.Pass, *levee.Refusal) { return e.pass, nil }

// A light pass holds nothing.
type light struct{}

func (light) Reach(*levee.Conn, levee.Stage) *levee.Refusal { return nil }
func (light) Leave(*levee.Conn, levee.End)                  {}

// BenchmarkDoor has one client after the other come and be turned away, or served a line.
// The client is made of system calls alone, so the allocations are the server's.
func BenchmarkDoor(b *testing.B) {
	for _, bench := range []struct {
		name string
		gate levee.Gate
	}{
		{"without a gate", nil},
		{"no pass", everybody{}},
		{"a pass", everybody{light{}}},
		{"refused", nobody{}},
	} {
		for name, listen := range map[string]func(testing.TB) net.Listener{"bare": listenTCP, "net": listenPlain} {
			b.Run(bench.name+"/"+name, func(b *testing.B) {
				l := listen(b)
				s := serve(b, &levee.Server{Handler: &lines{}, Gate: bench.gate, GoroutinePerConn: name == "net"}, l)
				client := newBareClient(l)
				b.ReportAllocs()
				for b.Loop() {
					client.visit(b)
				}
				stats := s.Stats()
				if refused := bench.gate == (nobody{}); refused != (stats.Accepted == 0) || refused != (stats.Refused[levee.Limited] > 0) {
					b.Errorf("%d accepted, %d refused", stats.Accepted, stats.Refused[levee.Limited])
				}
			})
		}
	}
}

type bareClient struct {
	to   unix.SockaddrInet4
	line []byte
	got  []byte
}

func newBareClient(l net.Listener) *bareClient {
	addr := l.Addr().(*net.TCPAddr)
	return &bareClient{unix.SockaddrInet4{Port: addr.Port, Addr: [4]byte(addr.IP.To4())}, []byte("close\n"), make([]byte, 10)}
}

// visit connects, says a line, and stays until the server has closed the connection.
func (c *bareClient) visit(b *testing.B) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	if unix.Connect(fd, &c.to) != nil || unix.Sendto(fd, c.line, unix.MSG_NOSIGNAL, nil) != nil {
		return // turned away already
	}
	for {
		if n, err := unix.Read(fd, c.got); n <= 0 || err != nil {
			return
		}
	}
}
