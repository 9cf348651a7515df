package handover

import (
	"bytes"
	"testing"
)

func TestFramesArriveAsTheyWereSent(t *testing.T) {
	for _, f := range []frame{
		{kind: framePing},
		{kind: frameOffer, files: 241, body: []byte(`{"batch":7}`)},
		{kind: 200, optional: true, body: []byte("whatever")},
	} {
		got, err := parseFrame(f.appendTo(nil))
		if err != nil || got.kind != f.kind || got.optional != f.optional || got.files != f.files || !bytes.Equal(got.body, f.body) {
			t.Errorf("%+v became %+v, %v", f, got, err)
		}
	}
}

func TestFramesOfAnotherKindAreRefused(t *testing.T) {
	for name, message := range map[string]string{
		"nothing":              "",
		"half a header":        "\x01\x05\x00\x00",
		"another version":      "\x02\x05\x00\x00\x00\x00\x00\x00",
		"a body that is short": "\x01\x05\x00\x00\x00\x00\x00\x02{",
		"a body that is long":  "\x01\x05\x00\x00\x00\x00\x00\x00{}",
		"a body of 4 GiB":      "\x01\x05\x00\x00\xff\xff\xff\xff{}",
		"too many files":       "\x01\x05\x00\xfb\x00\x00\x00\x00",
	} {
		if f, err := parseFrame([]byte(message)); err == nil {
			t.Errorf("%s was read as %+v", name, f)
		}
	}
}

// What parses is what was sent, to the byte but for flags that nobody knows; and what a body says of files and sizes is true, or it is refused.
func FuzzFrame(f *testing.F) {
	f.Add([]byte("\x01\x05\x00\x00\x00\x00\x00\x00"), int64(0))
	f.Add(newFrame(frameOffer, offerBody{Batch: 1, Server: "echo", Conns: []offer{{3, 2}, {4, 1}}}).appendTo(nil), int64(7))
	f.Add(newFrame(frameState, stateBody{Parts: []part{{"a", 3}, {"b", 0}}, LastID: 7}).appendTo(nil), int64(3))
	f.Add(newFrame(frameTaken, takenBody{1, []int{0, 2}, "why"}).appendTo(nil), int64(0))
	f.Fuzz(func(t *testing.T, message []byte, size int64) {
		got, err := parseFrame(message)
		if err != nil {
			return
		}
		known := bytes.Clone(message)
		known[2] &= flagOptional
		if again := got.appendTo(nil); !bytes.Equal(again, known) {
			t.Fatalf("%x became %x", message, again)
		}
		var offered offerBody
		if got.read(&offered) == nil && offered.check(got.files, size) == nil {
			checkOffer(t, &offered, got.files, size)
		}
		var state stateBody
		if got.read(&state) == nil && state.check(size) == nil {
			left := size
			for _, p := range state.Parts {
				if left -= int64(p.Size); p.Size < 0 || left < 0 {
					t.Fatalf("parts %v of a file of %d", state.Parts, size)
				}
			}
		}
	})
}

// checkOffer divides files and bytes as who adopts does.
func checkOffer(t *testing.T, offered *offerBody, files int, size int64) {
	t.Helper()
	files-- // the first has the records
	for _, c := range offered.Conns {
		files -= c.Sockets
		size -= int64(c.Size)
		if c.Sockets < 0 || c.Size < 0 || files < 0 || size < 0 {
			t.Fatalf("an offer that cannot be divided: %+v", offered)
		}
	}
	if files != 0 || size != 0 {
		t.Fatalf("%d files and %d bytes are left of %+v", files, size, offered)
	}
}
