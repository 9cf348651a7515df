package attack

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// A Protocol is what the well-behaved client says, and what is an answer to it.
type Protocol struct {
	name    string
	request []byte
	// answer reads one answer. last is: the server ends the connection after it.
	answer func(r *bufio.Reader) (last bool, err error)
}

// maxAnswer bounds what a round trip reads.
const maxAnswer = 1 << 20

// Echo sends a line of 64 bytes and wants it back.
func Echo() Protocol {
	line := []byte(strings.Repeat("levee flood: is anybody there? ", 3)[:63] + "\n")
	p := Exchange(line, line)
	p.name = "echo"
	return p
}

// Exchange sends the one and wants the other, to the byte.
func Exchange(send, expect []byte) Protocol {
	return Protocol{name: "exchange", request: send, answer: func(r *bufio.Reader) (bool, error) {
		got := make([]byte, len(expect))
		if n, err := io.ReadFull(r, got); err != nil {
			return false, fmt.Errorf("after %d of %d bytes: %w", n, len(got), err)
		}
		if !bytes.Equal(got, expect) {
			return false, errOther
		}
		return false, nil
	}}
}

var errOther = errors.New("the answer is another one")

// HTTP asks for a path of a host, by HTTP/1.1. A status of 500 or above is no
// answer: so does a server speak that has had enough.
func HTTP(host, path string) Protocol {
	request := "GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\nUser-Agent: levee-flood\r\n\r\n"
	return Protocol{name: "http", request: []byte(request), answer: func(r *bufio.Reader) (bool, error) {
		answer, err := http.ReadResponse(r, nil)
		if err != nil {
			return false, err
		}
		defer answer.Body.Close()
		n, err := io.Copy(io.Discard, io.LimitReader(answer.Body, maxAnswer))
		switch {
		case err != nil:
			return false, err
		case answer.StatusCode >= http.StatusInternalServerError:
			return false, fmt.Errorf("HTTP status %d", answer.StatusCode)
		}
		return answer.Close || n == maxAnswer, nil
	}}
}
