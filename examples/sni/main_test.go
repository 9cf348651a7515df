package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"testing"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

func listen(t *testing.T) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

// TestNamesLeadToTheirServers: one ends its TLS here, of the other the certificate is the server's own.
func TestNamesLeadToTheirServers(t *testing.T) {
	front, behind := leveetest.NewCA(t), leveetest.NewCA(t)
	db := listen(t)
	leveetest.Serve(t, &levee.Server{
		TLSConfig: behind.ServerConfig("*.db.localhost"),
		Handler: levee.HandlerFunc(func(_ context.Context, c *levee.Conn) error {
			_, err := io.WriteString(c, "I am "+c.TLS().ServerName+"\n")
			return err
		}),
	}, db)
	listener := listen(t)
	leveetest.Serve(t, newServer(front.ServerConfig("shout.localhost"), db.Addr().String()), listener)

	for _, try := range []struct {
		name string
		ca   *leveetest.CA
		want string
	}{
		{"shout.localhost", front, "HELLO\n"},
		{"one.db.localhost", behind, "I am one.db.localhost\n"},
	} {
		client, err := tls.Dial("tcp", listener.Addr().String(), try.ca.ClientConfig(try.name))
		if err != nil {
			t.Fatal(try.name, err)
		}
		io.WriteString(client, "hello\n")
		answer, err := bufio.NewReader(client).ReadString('\n')
		if answer != try.want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", try.name, answer, err, try.want)
		}
		client.Close()
	}
}

// TestOthersAreRefused: a name that is nobody's, and plaintext.
func TestOthersAreRefused(t *testing.T) {
	ca := leveetest.NewCA(t)
	listener := listen(t)
	srv := newServer(ca.ServerConfig("shout.localhost"), "127.0.0.1:1")
	leveetest.Serve(t, srv, listener)
	if client, err := tls.Dial("tcp", listener.Addr().String(), ca.ClientConfig("other.localhost")); err == nil {
		client.Close()
		t.Error("a name that is nobody's is served")
	}
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	io.WriteString(client, "hello\n")
	if answer, _ := io.ReadAll(client); len(answer) > 0 {
		t.Errorf("plaintext is answered %q", answer)
	}
	if closed := srv.Stats().Closed; closed[levee.NoRoute] == 0 {
		t.Errorf("closed are %v, want %v among them", closed, levee.NoRoute)
	}
}
