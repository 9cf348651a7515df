package leveetest_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee/leveetest"
)

// echo is the server under test.
func echo(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_, _ = io.Copy(conn, conn)
		}()
	}
}

func Example() {
	listener := leveetest.Listen()
	defer listener.Close()
	go echo(listener)

	client, err := listener.Dial(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()
	client.Write([]byte("hello"))
	client.CloseWrite()
	answer, err := io.ReadAll(client)
	fmt.Printf("%s, %v\n", answer, err)
	// Output: hello, <nil>
}

func ExampleListener_DialFrom() {
	listener := leveetest.Listen()
	defer listener.Close()

	client, err := listener.DialFrom(context.Background(), netip.MustParseAddrPort("203.0.113.7:4711"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()
	server, _ := listener.Accept()
	fmt.Println(server.RemoteAddr())
	// Output: 203.0.113.7:4711
}

func ExampleListener_FailAccepts() {
	listener := leveetest.Network{Addr: netip.MustParseAddrPort("127.0.0.1:5432")}.Listen()
	defer listener.Close()

	listener.FailAccepts(syscall.EMFILE)
	_, err := listener.Accept()
	fmt.Println(errors.Is(err, syscall.EMFILE))
	// Output: true
}

// A slow reader shows what a server does under back-pressure.
func ExampleNetwork_Pipe() {
	client, server := leveetest.Network{Buffer: 4}.Pipe()
	defer client.Close()
	defer server.Close()

	server.SetWriteDeadline(time.Now().Add(time.Millisecond))
	n, err := server.Write([]byte("abcdef")) // the client reads nothing
	fmt.Println(n, errors.Is(err, os.ErrDeadlineExceeded))
	// Output: 4 true
}

func ExampleConn_Reset() {
	client, server := leveetest.Pipe()
	defer server.Close()

	client.Write([]byte("half a mess"))
	client.Reset()
	received, err := io.ReadAll(server)
	fmt.Printf("%s, reset: %t\n", received, errors.Is(err, syscall.ECONNRESET))
	// Output: half a mess, reset: true
}

// A server must find its frames however the network cuts them.
func ExampleFaulty() {
	client, server := leveetest.Pipe()
	defer client.Close()
	faulty := leveetest.Faulty(server, leveetest.Faults{
		Read: leveetest.Fault{Segment: 2, After: 5, Then: leveetest.Reset},
	})
	defer faulty.Close()

	client.Write([]byte("PING\r\n"))
	buffer := make([]byte, 16)
	for {
		n, err := faulty.Read(buffer)
		if err != nil {
			fmt.Println("reset:", errors.Is(err, syscall.ECONNRESET))
			return
		}
		fmt.Printf("%q\n", buffer[:n])
	}
	// Output:
	// "PI"
	// "NG"
	// "\r"
	// reset: true
}

// Every other connection drips byte by byte.
func ExampleFaultyListener() {
	network := leveetest.Listen()
	listener := leveetest.FaultyListener(network,
		leveetest.Faults{},
		leveetest.Faults{Write: leveetest.Fault{Segment: 1, Delay: time.Millisecond}})
	defer listener.Close()
	go echo(listener)

	for range 2 {
		client, _ := network.Dial(context.Background())
		client.Write([]byte("hello"))
		buffer := make([]byte, 16)
		n, _ := client.Read(buffer)
		fmt.Printf("%s\n", buffer[:n])
		client.Close()
	}
	// Output:
	// hello
	// h
}

func ExampleNewCA() {
	t := new(testing.T) // in a test, its own
	ca := leveetest.NewCA(t)

	network := leveetest.Listen()
	listener := tls.NewListener(network, ca.ServerConfig("db.example.com"))
	defer listener.Close()
	go echo(listener)

	conn, err := network.Dial(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	client := tls.Client(conn, ca.ClientConfig("db.example.com"))
	defer client.Close()
	fmt.Fprint(client, "secret")
	answer := make([]byte, 6)
	_, err = io.ReadFull(client, answer)
	fmt.Printf("%s, %v\n", answer, err)
	// Output: secret, <nil>
}

func ExampleCA_Issue() {
	t := new(testing.T) // in a test, its own
	ca := leveetest.NewCA(t)

	expired := ca.Issue(leveetest.CertificateSpec{
		Names:    []string{"db.example.com"},
		NotAfter: time.Now().Add(-time.Hour),
	})
	fmt.Println(expired.Leaf.DNSNames, expired.Leaf.NotAfter.Before(time.Now()))
	// Output: [db.example.com] true
}

func ExampleCheckLeaks() {
	_ = func(t *testing.T) {
		leveetest.CheckLeaks(t) // first, so that it looks last

		listener := leveetest.Listen()
		t.Cleanup(func() { listener.Close() })
		go echo(listener)
	}
	// Output:
}
