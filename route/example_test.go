package route_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
	"github.com/levee-net/levee/route"
)

func Example() {
	echo := levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
		_, err := io.Copy(c, c)
		return err
	})
	greet := levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
		_, err := io.WriteString(c, "220 welcome\r\n")
		return err
	})
	srv := &levee.Server{Handler: &route.Router{Routes: []route.Route{
		{Match: route.Prefix("HELO ", "EHLO "), Handler: greet},
		{Handler: echo},
	}}}
	l := leveetest.Listen()
	go srv.Serve(context.Background(), l)
	defer srv.Close()

	for _, text := range []string{"EHLO x\r\n", "hello\r\n"} {
		c, err := l.Dial(context.Background())
		if err != nil {
			fmt.Println(err)
			return
		}
		io.WriteString(c, text)
		c.CloseWrite()
		answer, _ := io.ReadAll(c)
		fmt.Printf("%q\n", answer)
	}
	// Output:
	// "220 welcome\r\n"
	// "hello\r\n"
}

// One port, two names: the database's server keeps its TLS to itself, the shell's is
// terminated here.
func ExampleRouter() {
	t := new(testing.T) // in a program, certificates come from package certs
	ca := leveetest.NewCA(t)

	database := levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
		inside := tls.Server(c, ca.ServerConfig("db.example.com")) // elsewhere, and joined by package proxy
		if _, err := io.WriteString(inside, "database"); err != nil {
			return err
		}
		return inside.CloseWrite()
	})
	shell := levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
		_, err := fmt.Fprintf(c, "shell of %s", c.TLS().ServerName)
		return err
	})
	srv := &levee.Server{Handler: &route.Router{
		RequireTLS: true,
		Routes: []route.Route{
			{Match: route.SNI("db.example.com"), Passthrough: true, Handler: database},
			{Match: route.SNI("*.dev.example.com"), TLS: ca.ServerConfig("*.dev.example.com"), Handler: shell},
		},
	}}
	l := leveetest.Listen()
	go srv.Serve(context.Background(), l)
	defer srv.Close()

	for _, name := range []string{"db.example.com", "alice.dev.example.com", "example.com"} {
		c, err := l.Dial(context.Background())
		if err != nil {
			fmt.Println(err)
			return
		}
		answer, err := io.ReadAll(tls.Client(c, ca.ClientConfig(name)))
		fmt.Printf("%s: %q, %v\n", name, answer, err)
		c.Close()
	}
	// Output:
	// db.example.com: "database", <nil>
	// alice.dev.example.com: "shell of alice.dev.example.com", <nil>
	// example.com: "", remote error: tls: unrecognized name
}

// A port for PostgreSQL clients, which begin TLS by a request of their own.
func ExamplePostgresTLS() {
	t := new(testing.T) // in a program, certificates come from package certs
	ca := leveetest.NewCA(t)

	srv := &levee.Server{Handler: &route.Router{
		StartTLS: route.PostgresTLS,
		TLS:      ca.ServerConfig("*.db.example.com"),
		Routes: []route.Route{
			{Match: route.SNI("orders.db.example.com"), Handler: levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
				_, err := io.WriteString(c, "orders")
				return err
			})},
		},
	}}
	l := leveetest.Listen()
	go srv.Serve(context.Background(), l)
	defer srv.Close()

	c, err := l.Dial(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	io.WriteString(c, "\x00\x00\x00\x08\x04\xd2\x16\x2f") // SSLRequest
	answer := make([]byte, 1)
	io.ReadFull(c, answer)
	orders, err := io.ReadAll(tls.Client(c, ca.ClientConfig("orders.db.example.com")))
	fmt.Printf("%s, %s, %v\n", answer, orders, err)
	// Output: S, orders, <nil>
}

// A port for SMTP clients. The handler here speaks SMTP itself; before a server that does,
// it would be a proxy.Proxy with [route.MeetSMTP] as its Meet.
func ExampleSMTPTLS() {
	t := new(testing.T) // in a program, certificates come from package certs
	ca := leveetest.NewCA(t)

	srv := &levee.Server{Handler: &route.Router{
		StartTLS: route.SMTPTLS("mx.example.com"),
		TLS:      ca.ServerConfig("mx.example.com"),
		Routes: []route.Route{
			{Handler: levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
				_, err := fmt.Fprintf(c, "250 hello over %s", tls.VersionName(c.TLS().Version))
				return err
			})},
		},
	}}
	l := leveetest.Listen()
	go srv.Serve(context.Background(), l)
	defer srv.Close()

	c, err := l.Dial(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	lines := bufio.NewReader(c)
	for _, command := range []string{"", "MAIL FROM:<a@example.com>\r\n", "STARTTLS\r\n"} {
		io.WriteString(c, command)
		line, _ := lines.ReadString('\n')
		fmt.Println(strings.TrimSpace(line))
	}
	hello, err := io.ReadAll(tls.Client(c, ca.ClientConfig("mx.example.com")))
	fmt.Printf("%s, %v\n", hello, err)
	// Output:
	// 220 mx.example.com ESMTP
	// 530 5.7.0 Must issue a STARTTLS command first
	// 220 2.0.0 Ready to start TLS
	// 250 hello over TLS 1.3, <nil>
}
