package main

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee/leveetest"
)

// TestRoutesAreServed: on a network in memory, in virtual time.
func TestRoutesAreServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := leveetest.Listen()
		leveetest.Serve(t, newServer(), network)
		transport := &http.Transport{DialContext: network.DialContext}
		t.Cleanup(transport.CloseIdleConnections)
		client := &http.Client{Transport: transport}
		for path, want := range map[string]string{
			"/hello/world": "hello, world\n",
			"/nowhere":     "404 page not found\n",
		} {
			if body := get(t, client, path); body != want {
				t.Errorf("%s: got %q, want %q", path, body, want)
			}
		}
		time.Sleep(time.Second) // virtual time
		if body := get(t, client, "/connections"); !strings.HasSuffix(body, "\t1s\n") || !strings.Contains(body, "\t127.0.0.1:") {
			t.Errorf("connections are %q, want one that is a second old", body)
		}
	})
}

func get(t *testing.T, client *http.Client, path string) string {
	t.Helper()
	answer, err := client.Get("http://levee" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}
