package httpserve

import (
	"strings"
	"testing"
)

func TestWhereFramesEndIsKnown(t *testing.T) {
	settings, ping := "\x00\x00\x00\x04\x00\x00\x00\x00\x00", "\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678"
	long := "\x01\x00\x02\x00\x00\x00\x00\x00\x01" + strings.Repeat("x", 1<<16+2)
	for sent, want := range map[string]struct{ http2, inFrame bool }{
		"":                                  {false, false},
		preface[:len(preface)-1]:            {false, false},
		preface:                             {true, false},
		preface + settings:                  {true, false},
		preface + settings[:3]:              {true, true},
		preface + settings + ping:           {true, false},
		preface + ping[:9]:                  {true, true},
		preface + ping[:16] + "8" + long:    {true, false},
		preface + long[:1<<16]:              {true, true},
		"GET / HTTP/1.1\r\n\r\n":            {false, false},
		"PRI * HTTP/1.1\r\n\r\n" + ping[:1]: {false, false},
	} {
		var v version
		v.read([]byte(sent))
		if v.http2 != want.http2 || v.inFrame() != want.inFrame {
			t.Errorf("%.40q: %+v", sent, v)
		}
	}
}

// However the bytes come, it is the same.
func FuzzVersion(f *testing.F) {
	f.Add([]byte(preface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00"), uint(7))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint(1))
	f.Fuzz(func(t *testing.T, sent []byte, each uint) {
		var whole, pieces version
		whole.read(sent)
		size := int(each%64) + 1
		for b := sent; len(b) > 0; {
			n := min(size, len(b))
			pieces.read(b[:n])
			b = b[n:]
		}
		whole.preface, pieces.preface = 0, 0 // how far it went is no matter
		if whole != pieces {
			t.Errorf("at once %+v, %d by %d %+v", whole, size, size, pieces)
		}
		if whole.http2 != strings.HasPrefix(string(sent), preface) {
			t.Errorf("%q: %+v", sent, whole)
		}
	})
}
