package probe

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// A Request is what HTTP asks and which answers it is content with.
type Request struct {
	Method string // empty means GET
	Path   string // with its query, if it has one; the leading / may be missing
	Host   string // empty means localhost, which a server with several names may not know

	// MinStatus and MaxStatus are the first and the last status code of a server that
	// is well. Zero means 200 and 399.
	MinStatus, MaxStatus int
}

// HTTP makes a request in HTTP/1.1, and wants a status code in the range. It reads the
// answer's head, of at most 64 KiB, and leaves the body unread. Over TLS the pool must
// not offer the server HTTP/2, which it would then have to speak.
//
// If there can be no such request, the probe returns the reason each time.
func HTTP(request Request) Probe {
	if request.Host == "" {
		request.Host = "localhost"
	}
	if !strings.HasPrefix(request.Path, "/") {
		request.Path = "/" + request.Path
	}
	if request.MinStatus == 0 {
		request.MinStatus = 200
	}
	if request.MaxStatus == 0 {
		request.MaxStatus = 399
	}
	return converse(maxAnswer, func(w io.Writer, r *bufio.Reader) error {
		ask, err := http.NewRequest(request.Method, "http://localhost"+request.Path, http.NoBody)
		if err != nil {
			return err
		}
		ask.Host = request.Host
		ask.Close = true
		ask.Header.Set("User-Agent", "levee")
		if err := ask.Write(w); err != nil {
			return err
		}
		for {
			answer, err := http.ReadResponse(r, ask) //nolint:bodyclose // closing it would read it to its end
			if err != nil {
				return err
			}
			switch status := answer.StatusCode; {
			case status < 200 && status != http.StatusSwitchingProtocols:
				continue // 1xx: the answer is still to come (RFC 9110 section 15.2)
			case status < request.MinStatus || status > request.MaxStatus:
				return fmt.Errorf("status %d, not %d to %d", status, request.MinStatus, request.MaxStatus)
			}
			return nil
		}
	})
}
