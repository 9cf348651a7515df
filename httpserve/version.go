package httpserve

// A version tells from what a client sends which one of HTTP it speaks, and in HTTP/2 where its frames end: a client may
// begin it and never ask for anything, and sends frames that are no requests.
type version struct {
	http2 bool  // it is the second, for sure
	other bool  // it is not
	seen  int64 // bytes, in HTTP/2

	preface int // so many bytes of that have been read
	header  int // of the frame's header
	length  int // of its payload, as far as the header says
	left    int // of its payload
}

// preface is what a client begins HTTP/2 with (RFC 9113 section 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

const (
	frameHeader = 9 // bytes (RFC 9113 section 4.1)
	frameLength = 3 // of these, the first
)

// read takes what has been read next.
func (v *version) read(b []byte) {
	if !v.http2 && !v.other {
		due := preface[v.preface:]
		n := min(len(b), len(due))
		if v.other = string(b[:n]) != due[:n]; v.other {
			return
		}
		v.preface += n
		v.http2 = v.preface == len(preface)
		b = b[n:]
	}
	if !v.http2 {
		return
	}
	v.seen += int64(len(b))
	for len(b) > 0 {
		if v.left > 0 {
			n := min(v.left, len(b))
			v.left -= n
			b = b[n:]
			continue
		}
		if v.header < frameLength {
			v.length = v.length<<8 | int(b[0])
		}
		b = b[1:]
		if v.header++; v.header == frameHeader {
			v.left, v.length, v.header = v.length, 0, 0
		}
	}
}

// inFrame reports whether there is the rest of a frame to come.
func (v *version) inFrame() bool { return v.header > 0 || v.left > 0 }
