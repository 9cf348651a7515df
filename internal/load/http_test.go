package load_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/levee-net/levee/internal/load"
)

func TestHTTPResponsesAreToldApart(t *testing.T) {
	for stream, want := range map[string][]string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n":              {"whole", "refused"},
		"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nTrailer: x\r\n\r\nHTTP/1.1 204 \r\n\r\n": {"whole", "whole"},
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length:0\r\nConnection: close\r\n\r\n":                  {"last"},
		"HTTP/1.0 200 OK\nContent-Length: 1\n\nx":                                                                        {"last"},
	} {
		for size := 1; size <= len(stream); size++ {
			got, err := load.Responses(slices.Collect(slices.Chunk([]byte(stream), size))...)
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%q in pieces of %d: %q, %v; want %q", stream, size, got, err, want)
			}
		}
	}
}

func TestWhatIsNotHTTPIsAnError(t *testing.T) {
	for stream, want := range map[string]string{
		"SSH-2.0-x\r\n":                                                     "no status line",
		"HTTP/1.1 20x OK\r\n":                                               "no status line",
		"HTTP/1.1 200 OK\r\nnothing\r\n":                                    "no header",
		"HTTP/1.1 200 OK\r\n\r\n":                                           "neither a length nor chunks",
		"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n":                         "a length of",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n":                "an encoding of",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n":      "no size of a chunk",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxyz\r\n": "where a chunk should end",
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 70<<10):              "more than 65536 bytes",
	} {
		_, err := load.Responses([]byte(stream))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: error %v; want %q", stream, err, want)
		}
	}
}

// FuzzHTTPReply: where the bytes are cut says nothing about what they mean.
func FuzzHTTPReply(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 500 \r\nContent-Length: 0\r\n\r\n"), 3)
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), 1)
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n"), 7)
	f.Fuzz(func(t *testing.T, stream []byte, size int) {
		if size < 1 {
			return
		}
		atOnce, err := load.Responses(stream)
		inPieces, err2 := load.Responses(slices.Collect(slices.Chunk(bytes.Clone(stream), size))...)
		if !slices.Equal(atOnce, inPieces) || (err == nil) != (err2 == nil) {
			t.Errorf("at once: %q, %v; in pieces: %q, %v", atOnce, err, inPieces, err2)
		}
	})
}
