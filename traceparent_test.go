package levee_test

import (
	"encoding/binary"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

const parentText = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

func TestTraceParentsAreReadAsW3CWritesThem(t *testing.T) {
	ids := parentText[3:52]
	for text, want := range map[string]string{ // what is read, as levee writes it; "" for nothing
		parentText:                           parentText,
		"00-" + ids + "-00":                  "00-" + ids + "-00",
		"00-" + ids + "-03":                  parentText, // the trace's id is random, too
		"cc-" + ids + "-01-what-will-be":     parentText, // a version to come
		"cc-" + ids + "-ff":                  parentText,
		"cc-" + ids + "-fe":                  "00-" + ids + "-00",
		"":                                   "",
		parentText[:54]:                      "",
		parentText + "-":                     "",
		parentText + " ":                     "",
		" " + parentText:                     "",
		"00-" + ids + "-04":                  "",
		"ff-" + ids + "-01":                  "",
		"cc-" + ids + "-01.what-will-be":     "",
		"0x-" + ids + "-01":                  "",
		"00-" + strings.ToUpper(ids) + "-01": "",
		"00_" + ids + "-01":                  "",
		"00-" + ids + "-0G":                  "",
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01":  "",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01":  "",
		"00-4bf92f3577b34da6a3ce929d0e0e473\n-00f067aa0ba902b7-01": "",
	} {
		got, err := levee.ParseTraceParent(text)
		if got.String() != want || got.IsValid() != (want != "") || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v, want %q", text, got, err, want)
		}
		if err != nil && len(text) > 0 && strings.Contains(err.Error(), text) {
			t.Errorf("the error quotes a stranger: %v", err)
		}
	}
}

// tlv builds a TLV of a PROXY v2 header.
func tlv(kind byte, value string) string {
	return string(binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(value)))) + value
}

func TestProxyHeaderTellsWhatTheConnectionIsAPartOf(t *testing.T) {
	for name, test := range map[string]struct{ header, want string }{
		"as W3C writes it":   {v2(0x21, 0x11, v4Addresses+tlv(0x05, "an id")+tlv(levee.TraceParentTLV, parentText)), parentText},
		"over IPv6":          {v2(0x21, 0x21, v6Addresses+tlv(levee.TraceParentTLV, parentText)), parentText},
		"nothing":            {v2(0x21, 0x11, v4Addresses), ""},
		"version 1":          {"PROXY TCP4 198.51.100.7 198.51.100.8 4711 80\r\n", ""},
		"malformed":          {v2(0x21, 0x11, v4Addresses+tlv(levee.TraceParentTLV, strings.Replace(parentText, "4b", "4B", 1))), ""},
		"empty":              {v2(0x21, 0x11, v4Addresses+tlv(levee.TraceParentTLV, "")), ""},
		"binary":             {v2(0x21, 0x11, v4Addresses+tlv(levee.TraceParentTLV, strings.Repeat("\x00\xff\n", 1000))), ""},
		"the first one":      {v2(0x21, 0x11, v4Addresses+tlv(levee.TraceParentTLV, "?")+tlv(levee.TraceParentTLV, parentText)), ""},
		"the proxy's itself": {v2(0x20, 0x11, v4Addresses+tlv(levee.TraceParentTLV, parentText)), ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := leveetest.Listen()
			told := make(chan levee.TraceParent, 2)
			ends := stage(t, &levee.Server{
				ProxyFrom: fromProxy,
				Trace:     &levee.Trace{ProxyHeader: func(c *levee.Conn) { told <- c.TraceParent() }},
				Handler:   does(func(c *levee.Conn) error { told <- c.TraceParent(); return nil }),
			}, l)
			send(t, dialAs(t, l, proxyAddress), test.header)
			for range 2 {
				if got := <-told; got.String() != test.want {
					t.Errorf("%s: %q, want %q", name, got, test.want)
				}
			}
			expectReason(t, ends, levee.HandlerClosed)
		})
	}
}
