package load

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"strconv"
)

// HTTP is GET over HTTP/1.1 with keep-alive. An answer with a status of 400 or
// above counts as refused. When the server ends a connection after an answer, as
// it may, a new one is opened in its place.
func HTTP(u *url.URL) Protocol {
	request := "GET " + u.RequestURI() + " HTTP/1.1\r\nHost: " + u.Host + "\r\nUser-Agent: levee-bench\r\n\r\n"
	return Protocol{request: []byte(request), reply: func() reply { return &httpReply{length: unknown} }}
}

// An httpReply reads responses as RFC 9112 has them, from a server that is not
// hostile but may be wrong: what it does not understand is an error.
type httpReply struct {
	part   httpPart
	line   []byte // as much of it as has come
	header int    // bytes of all lines so far
	status int
	length int64 // of the body or the chunk, or what is left of it
	chunks bool
	close  bool
}

type httpPart int

const (
	statusLine httpPart = iota
	headerLine
	body
	chunkSize
	chunk
	chunkEnd
	trailer
)

const (
	unknown   = -1
	maxHeader = 64 << 10 // servers send 8 to 16 KB at most; trailers and the lines of chunks count too
)

func (r *httpReply) take(p []byte) (int, replyState, error) {
	taken := 0
	for taken < len(p) {
		if r.part == body || r.part == chunk {
			n := min(int64(len(p)-taken), r.length)
			taken += int(n)
			r.length -= n
			switch {
			case r.length > 0:
			case r.part == body:
				return taken, r.next(), nil
			default:
				r.part, r.header = chunkEnd, 0
			}
			continue
		}
		piece, _, ends := bytes.Cut(p[taken:], []byte("\n"))
		taken += len(piece)
		if r.header += len(piece); r.header > maxHeader {
			return 0, partial, fmt.Errorf("HTTP header of more than %d bytes", maxHeader)
		}
		r.line = append(r.line, piece...)
		if !ends {
			break
		}
		taken++
		complete, err := r.read(bytes.TrimSuffix(r.line, []byte("\r")))
		r.line = r.line[:0]
		if err != nil {
			return 0, partial, fmt.Errorf("HTTP: %w", err)
		}
		if complete {
			return taken, r.next(), nil
		}
	}
	return taken, partial, nil
}

// next makes r ready for the next response, and says what came of this one.
func (r *httpReply) next() replyState {
	state := whole
	switch {
	case r.close:
		state = last
	case r.status >= 400:
		state = refused
	}
	*r = httpReply{line: r.line[:0], length: unknown}
	return state
}

// read reads a line, and reports whether the response ends with it.
func (r *httpReply) read(line []byte) (bool, error) {
	switch r.part {
	case statusLine:
		return false, r.readStatus(line)
	case headerLine:
		if len(line) == 0 {
			return r.readBlank()
		}
		return false, r.readHeader(line)
	case chunkSize:
		size, _, _ := bytes.Cut(line, []byte(";"))
		n, err := strconv.ParseInt(string(bytes.TrimSpace(size)), 16, 64)
		if err != nil || n < 0 {
			return false, fmt.Errorf("%q is no size of a chunk", line)
		}
		if r.length, r.part = n, chunk; n == 0 {
			r.part = trailer
		}
	case chunkEnd:
		if len(line) != 0 {
			return false, fmt.Errorf("%q where a chunk should end", line)
		}
		r.part = chunkSize
	default: // trailer
		return len(line) == 0, nil
	}
	return false, nil
}

func (r *httpReply) readStatus(line []byte) error {
	version, rest, _ := bytes.Cut(line, []byte(" "))
	code, _, _ := bytes.Cut(rest, []byte(" "))
	status, err := strconv.Atoi(string(code))
	if !bytes.HasPrefix(version, []byte("HTTP/1.")) || err != nil || status < 100 || status > 999 {
		return fmt.Errorf("%q is no status line", line[:min(len(line), 40)])
	}
	r.status, r.part = status, headerLine
	r.close = string(version) == "HTTP/1.0"
	return nil
}

func (r *httpReply) readHeader(line []byte) error {
	name, value, found := bytes.Cut(line, []byte(":"))
	if !found {
		return fmt.Errorf("%q is no header", line[:min(len(line), 40)])
	}
	value = bytes.TrimSpace(value)
	switch {
	case bytes.EqualFold(name, []byte("Content-Length")):
		n, err := strconv.ParseInt(string(value), 10, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("a length of %q", value)
		}
		r.length = n
	case bytes.EqualFold(name, []byte("Transfer-Encoding")):
		if !bytes.EqualFold(value, []byte("chunked")) {
			return fmt.Errorf("an encoding of %q", value)
		}
		r.chunks = true
	case bytes.EqualFold(name, []byte("Connection")):
		r.close = bytes.EqualFold(value, []byte("close"))
	}
	return nil
}

// readBlank reads the line after the headers, and reports whether the response ends with it.
func (r *httpReply) readBlank() (bool, error) {
	switch {
	case r.status < 200: // 100 Continue and the like: the response is yet to come
		*r = httpReply{line: r.line, header: r.header, length: unknown}
	case r.status == 204 || r.status == 304:
		return true, nil
	case r.chunks:
		r.part = chunkSize
	case r.length == unknown:
		return false, errors.New("a response with neither a length nor chunks")
	case r.length == 0:
		return true, nil
	default:
		r.part = body
	}
	return false, nil
}
