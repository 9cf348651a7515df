package levee

import "io"

// A veil is what crypto/tls has for a socket while an event loop has the real one: what
// the loop has read waits here to be read, and what is written here is for the loop to
// write.
type veil struct {
	in  []byte // records, or parts of them, that came
	end bool   // and no more will
	out []byte // records to send
}

func (v *veil) read(p []byte) (int, error) {
	switch {
	case len(v.in) > 0:
		n := copy(p, v.in)
		v.in = v.in[n:]
		return n, nil
	case v.end:
		return 0, io.EOF
	}
	return 0, errWouldBlock
}

func (v *veil) write(p []byte) (int, error) {
	v.out = append(v.out, p...)
	return len(p), nil
}
