package probe_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/levee-net/levee/upstream/probe"
)

// A script is the connection to a server that says the same whatever it is asked,
// in pieces, and closes.
type script struct {
	net.Conn // nil: what is not below is not called
	says     io.Reader
	asked    bytes.Buffer
}

func says(text string, piece int) *script {
	return &script{says: &pieces{strings.NewReader(text), piece}}
}

func (s *script) Read(p []byte) (int, error)  { return s.says.Read(p) }
func (s *script) Write(p []byte) (int, error) { return s.asked.Write(p) }
func (*script) SetDeadline(time.Time) error   { return nil }

type pieces struct {
	io.Reader
	size int
}

func (r *pieces) Read(p []byte) (int, error) { return r.Reader.Read(p[:min(len(p), r.size)]) }

// A dialogue is what a server says to a probe, and what comes of it.
type dialogue struct {
	says string
	want string // the error; empty if the server is well
}

// check holds the dialogues, with the answers whole and byte by byte.
func check(t *testing.T, p probe.Probe, asked string, dialogues []dialogue) {
	t.Helper()
	for _, d := range dialogues {
		for _, size := range []int{1 << 20, 1} {
			s := says(d.says, size)
			if got := text(p(context.Background(), s)); got != d.want {
				t.Errorf("%.200q in pieces of %d: %q, want %q", d.says, size, got, d.want)
			}
			if !strings.HasPrefix(s.asked.String(), asked) {
				t.Errorf("asked %q", s.asked.String())
			}
		}
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
