package route_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/levee-net/levee/route"
)

// steady wants a verdict on ever more of b that does not change once it is one, and
// returns it with the number of bytes that it took.
func steady(t *testing.T, b []byte, judge func(b []byte) route.Verdict) (v route.Verdict, took int) {
	t.Helper()
	v = route.More
	for n := range len(b) + 1 {
		now := judge(b[:n:n])
		switch {
		case v == route.More && now != route.More:
			v, took = now, n
		case now != v:
			t.Fatalf("%q: after %d bytes it is %v, after %d %v", b, took, v, n, now)
		}
	}
	return v, took
}

// prefixes is a regular expression of what words can begin with.
func prefixes(words ...string) string {
	var all []string
	for _, w := range words {
		for n := range len(w) {
			all = append(all, w[:n])
		}
	}
	return strings.Join(all, "|")
}

// FuzzLine compares how lines are read, byte by byte, with regular expressions for
// the longest beginning of one.
func FuzzLine(f *testing.F) {
	words := []string{"EHLO", "HELO", "STARTTLS", "NOOP", "QUIT", "MAIL", "RCPT", "DATA", "RSET", "VRFY", "EXPN", "HELP", "AUTH", "BDAT", "ETRN"}
	known := "(?i:" + strings.Join(words, "|") + ")"
	smtp := regexp.MustCompile(`^(?:(?:(?i:` + prefixes(words...) + `)|` + known + `(?: [\t -~]*)?)\r?|(?:(?i:[A-Z]*)|` + known + ` [\t -~]*)\r\n)$`)
	tag := `[^\x00-\x20\x7f-\x{10ffff}(){%*"\\+]`
	imap := regexp.MustCompile(`^(?:` + tag + `{1,64}(?: (?:[A-Za-z]+(?: [\t -~]*)?)?)?(?:\r|\r\n)?)?$`)
	for _, line := range []string{
		"EHLO a\r\n", "ehlo a b\r\nx", "STARTTLS\r\n", "STARTTLSX", "Q", "QU\r\n", "QU \r\n", "EHLO\ta", "\r\n", "\n", "EHLO a\rb", "x NOOP\r\n", "x  ", "* OK\r\n", "a LOGIN {3}\r\nabc",
		"x1 UID FETCH 1 (FLAGS)\r\n", "x\ty", "x a\tb", "x a-b", "\x16\x03\x01", "GET / HTTP/1.1\r\n",
	} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for protocol, of := range map[string]struct {
			possible func(b []byte) route.Verdict
			wanted   *regexp.Regexp
		}{"SMTP": {route.SMTPCommand, smtp}, "IMAP": {route.IMAPCommand, imap}} {
			for n := 1; n <= len(b); n++ {
				v, err := route.LineGoesOn(b[:n], of.possible)
				want := of.wanted.Match(b[:n]) && b[0] != '\r'
				if want != (err == nil) || (v == route.Yes) != (want && bytes.HasSuffix(b[:n], []byte("\r\n"))) {
					t.Fatalf("%s: %q: %v, %v, want %v", protocol, b[:n], v, err, want)
				}
				if v == route.Yes || err != nil {
					break
				}
			}
		}
	})
}

// sized turns what a greeting's reader says into a verdict.
func sized(read func(b []byte) (int, error)) func(b []byte) route.Verdict {
	return func(b []byte) route.Verdict {
		switch size, err := read(b); {
		case err != nil:
			return route.No
		case size > 0:
			return route.Yes
		}
		return route.More
	}
}

func FuzzGreeting(f *testing.F) {
	reply := regexp.MustCompile(`^(?:([0-9]{3})-[^\n]*\n)*([0-9]{3})(?: [^\n]*|\r)\n`)
	for _, greeting := range []string{"220 a\r\n", "220-a\r\n220-b\r\n220 c\r\nrest", "220\r\n", "220-a\r\n221 b\r\n", "220\n", "220_x\n", "* OK x\r\n* y", "*", "22", "220\rx\n", "220-\n220 \n"} {
		f.Add([]byte(greeting))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, _ := steady(t, b, sized(route.SMTPReply))
		whole := reply.Find(b)
		for line := range bytes.Lines(whole) {
			if !bytes.HasPrefix(line, whole[:3]) {
				whole = nil
				break
			}
		}
		if (v == route.Yes) != (whole != nil) {
			t.Errorf("%q: %v", b, v)
		}
		if size, _ := route.SMTPReply(b); v == route.Yes && size != len(whole) {
			t.Errorf("%q: %d bytes, want %d", b, size, len(whole))
		}
		if v == route.No { // then nothing that could follow makes a reply of it
			for _, more := range []string{"\r\n", " \r\n", "0 \r\n", "\n" + string(b[:min(3, len(b))]) + " x\r\n"} {
				if longer := append(slices.Clone(b), more...); isReply(reply, longer) {
					t.Errorf("%q is refused, and could become %q", b, longer)
				}
			}
		}

		v, _ = steady(t, b, sized(route.IMAPGreeting))
		first, _, ended := bytes.Cut(b, []byte("\n"))
		if want := ended && bytes.HasPrefix(first, []byte("* ")); (v == route.Yes) != want {
			t.Errorf("%q: %v", b, v)
		}
		if size, _ := route.IMAPGreeting(b); v == route.Yes && size != len(first)+1 {
			t.Errorf("%q: %d bytes", b, size)
		}
	})
}

func isReply(reply *regexp.Regexp, b []byte) bool {
	whole := reply.Find(b)
	for line := range bytes.Lines(whole) {
		if !bytes.HasPrefix(line, whole[:3]) {
			return false
		}
	}
	return whole != nil
}

// A tlv is an element of BER and those in it.
type tlv struct {
	tag     byte
	content []byte
}

// elements cuts all of b into elements, at once, and returns nil if that cannot be done.
func elements(b []byte) (all []tlv) {
	for len(b) > 0 {
		if len(b) < 2 {
			return nil
		}
		tag, length, rest := b[0], uint64(b[1]), b[2:]
		if length >= 0x80 {
			n := int(length & 0x7f)
			if n == 0 || n > 4 || n > len(rest) {
				return nil
			}
			length = binary.BigEndian.Uint64(append(make([]byte, 8-n), rest[:n]...))
			rest = rest[n:]
		}
		if length > uint64(len(rest)) {
			return nil
		}
		all = append(all, tlv{tag, rest[:length]})
		b = rest[length:]
	}
	return all
}

// FuzzLDAP compares what is made of the beginning of a message with a reference that
// has all of it.
func FuzzLDAP(f *testing.F) {
	for _, message := range []string{
		ldapStartTLS, ldapSearch, ldapBind, ldapUnbind + "\x00", ldapAbandon, ldapWhoAmI, "\x30\x84\x00\x00\x00\x0c" + ldapBind[2:], "\x16\x03\x01", "GET /",
		"\x30\x1f\x02\x01\x01\x77\x1a\x80\x161.3.6.1.4.1.1466.20037\x81\x00", "\x30\x1f\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037\xa0\x00",
		"\x30\x81\x1e\x02\x01\x01\x77\x81\x18\x80\x161.3.6.1.4.1.1466.20037", "\x30\x05\x02\x01\x01\x77\x00", "\x30\x00", "\x30\x80", "\x30\x82\x40\x01",
	} {
		f.Add([]byte(message), []byte("rest"))
	}
	answered := []byte{0x60, 0x63, 0x66, 0x68, 0x4a, 0x6c, 0x6e, 0x50, 0x42}
	f.Fuzz(func(t *testing.T, message, rest []byte) {
		outer := elements(message)
		if len(outer) != 1 || outer[0].tag != 0x30 || len(message) > 16<<10 {
			steady(t, message, func(b []byte) route.Verdict { // only that it is safe
				_, _, _, _, _, v := route.LDAPMessage(b)
				return v
			})
			return
		}
		b := append(slices.Clone(message), rest...)
		v, took := steady(t, b, func(b []byte) route.Verdict {
			_, _, _, _, _, v := route.LDAPMessage(b)
			return v
		})
		if took > len(message) {
			t.Errorf("%x: it has looked at what is behind it", message)
		}
		operation, id, size, startTLS, _, _ := route.LDAPMessage(b)
		want, wantTLS := route.No, false
		// The reference takes the number and the operation's tag from the front: what is behind the
		// tag of all but extended operations is for the server to judge.
		head, number := firstElement(outer[0].content)
		if head != nil && number.tag == 2 && len(number.content) >= 1 && len(number.content) <= 4 && number.content[0] < 0x80 {
			behind := outer[0].content[len(head):]
			switch {
			case len(behind) > 0 && bytes.IndexByte(answered, behind[0]) >= 0:
				want = route.Yes
			case len(behind) > 0 && behind[0] == 0x77:
				op, extended := firstElement(behind)
				_, name := firstElement(extended.content)
				begun := name.tag == 0x80
				if op == nil { // longer than the message, but its name may be there
					begun, name.content = nameIn(behind)
				}
				switch {
				case begun && string(name.content) != "1.3.6.1.4.1.1466.20037":
					want = route.Yes
				case begun && len(op) == len(behind) && len(extended.content) == len(extendedName(extended.content)):
					want, wantTLS = route.Yes, true
				}
			}
			if want == route.Yes && (operation != behind[0] || !bytes.Equal(id, number.content) || size != len(message)) {
				t.Errorf("%x: operation %x, id %x, size %d", message, operation, id, size)
			}
		}
		if v != want || startTLS != wantTLS {
			t.Errorf("%x: %v, StartTLS %v, want %v, %v", message, v, startTLS, want, wantTLS)
		}
	})
}

// firstElement returns the first element of b, and what it takes, nil if it is not there.
func firstElement(b []byte) (whole []byte, e tlv) {
	for n := 2; n <= len(b); n++ {
		if all := elements(b[:n]); len(all) == 1 {
			return b[:n], all[0]
		}
	}
	return nil, tlv{}
}

// extendedName returns the first element of an extended operation.
func extendedName(b []byte) []byte {
	whole, _ := firstElement(b)
	return whole
}

// nameIn looks for the name in an extended operation that is cut short.
func nameIn(b []byte) (begun bool, name []byte) {
	head := 2
	if len(b) > 1 && b[1] >= 0x80 {
		n := int(b[1] & 0x7f)
		if n == 0 || n > 4 || len(b) < 2+n || n == 4 && binary.BigEndian.Uint32(b[2:]) > 1<<30 {
			return false, nil
		}
		head += n
	}
	if len(b) < head {
		return false, nil
	}
	whole, e := firstElement(b[head:])
	return whole != nil && e.tag == 0x80, e.content
}

// FuzzMySQLAnswer compares what is made of a client's first packet with a reference that has
// all of it.
func FuzzMySQLAnswer(f *testing.F) {
	for _, packet := range []string{mysqlSSLRequest, mysqlSSLRequest + "x", "\x21\x00\x00\x01\x00\x82\x08\x00", "\x05\x00\x00\x01abcde", "GET / HTTP/1.1\r\n", "\x20\x00\x00\x01\x00\x82\x08\x00"} {
		f.Add([]byte(packet))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, took := steady(t, b, func(b []byte) route.Verdict {
			_, v := route.MySQLAnswer(b)
			return v
		})
		request, _ := route.MySQLAnswer(b)
		if len(b) < 36 {
			if request {
				t.Errorf("%x is no request yet", b)
			}
			return
		}
		length, flags := binary.LittleEndian.Uint32(b)&0xffffff, binary.LittleEndian.Uint32(b[4:])
		valid := b[3] == 1 && length >= 32 && length < 1<<16 && flags&512 != 0
		wantRequest := valid && length == 32 && flags&2048 != 0
		want := route.No
		if wantRequest || valid && length > 32 {
			want = route.Yes
		}
		if v != want || request != wantRequest || took > 36 {
			t.Errorf("%x: %v, request %v after %d bytes, want %v, %v", b, v, request, took, want, wantRequest)
		}
	})
}

// A login is a HandshakeResponse41.
type login struct {
	flags                                 uint32
	fixed                                 []byte // behind the flags
	user, answer, database, plugin, attrs []byte
}

// parseLogin reads one by the book.
func parseLogin(b []byte) (l login, ok bool) {
	if len(b) < 32 {
		return l, false
	}
	l.flags, l.fixed = binary.LittleEndian.Uint32(b), b[4:32]
	r := bytes.NewBuffer(b[32:])
	untilNUL := func() (text []byte) {
		text, err := r.ReadBytes(0)
		ok = ok && err == nil
		return bytes.TrimSuffix(text, []byte{0})
	}
	ok = true
	l.user = untilNUL()
	switch {
	case l.flags&(1<<21) != 0:
		n, err := r.ReadByte()
		length := int(n)
		if n == 0xfc {
			length = int(binary.LittleEndian.Uint16(append(bytes.Clone(r.Next(2)), 0, 0)))
			ok = ok && r.Len() >= length
		}
		ok = ok && err == nil && (n <= 250 || n == 0xfc) && r.Len() >= length
		l.answer = r.Next(length)
	case l.flags&(1<<15) != 0:
		n, err := r.ReadByte()
		ok = ok && err == nil && r.Len() >= int(n)
		l.answer = r.Next(int(n))
	default:
		l.answer = untilNUL()
	}
	if l.flags&8 != 0 {
		l.database = untilNUL()
	}
	plugin, _ := r.ReadBytes(0)
	l.plugin, l.attrs = bytes.TrimSuffix(plugin, []byte{0}), r.Bytes()
	return l, ok
}

func loginOf(flags uint32, rest string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, flags)
	return append(append(b, make([]byte, 28)...), rest...)
}

func FuzzMySQLLogin(f *testing.F) {
	const usual = 1<<9 | 1<<11 | 1<<15 | 1<<19
	f.Add(loginOf(usual, "root\x00\x14aaaaaaaaaaaaaaaaaaaamysql_native_password\x00"), uint32(0xffffffff))
	f.Add(loginOf(usual|1<<21|8|1<<20, "root\x00\xfc\x02\x00aadb\x00caching_sha2_password\x00\x05\x01a\x02bc"), uint32(0xffffffff))
	f.Add(loginOf(1<<9|1<<19, "root\x00aaa\x00plugin"), uint32(usual))
	f.Add(loginOf(usual|1<<24, "root\x00\x00p\x00"), uint32(usual))
	f.Add(loginOf(1<<9, "root\x00\x00"), uint32(usual))
	f.Add(loginOf(usual|1<<21, "root\x00\xfd\x00\x00\x00"), uint32(usual))
	f.Add([]byte("short"), uint32(0))
	f.Fuzz(func(t *testing.T, b []byte, has uint32) {
		anew, err := route.LoginAnew(b, has)
		l, ok := parseLogin(b)
		shaping := l.flags & (1<<5 | 1<<23 | 1<<24 | 1<<25 | 1<<26 | 1<<27 | 1<<28)
		ok = ok && l.flags&(1<<9) != 0 && l.flags&(1<<19) != 0 && has&(1<<9) != 0 && has&(1<<19) != 0 && shaping&^has == 0
		if ok != (err == nil) {
			t.Fatalf("%x: %v", b, err)
		}
		if !ok {
			return
		}
		got, ok := parseLogin(anew)
		if !ok || got.flags != l.flags&^(1<<11|1<<21)|1<<15 || !bytes.Equal(got.fixed, l.fixed) || !bytes.Equal(got.user, l.user) ||
			len(got.answer) != 0 || !bytes.Equal(got.database, l.database) || string(got.plugin) != "levee_starttls" || !bytes.Equal(got.attrs, l.attrs) {
			t.Errorf("%x became %x", b, anew)
		}
	})
}

// A peer has said all that it will say, and keeps what it is told.
type peer struct {
	io.Reader
	bytes.Buffer
}

func (p *peer) Read(b []byte) (int, error) { return p.Reader.Read(b) }

func packets(from byte, payloads ...[]byte) (b []byte) {
	for i, p := range payloads {
		b = append(b, byte(len(p)), byte(len(p)>>8), byte(len(p)>>16), from+byte(i))
		b = append(b, p...)
	}
	return b
}

// FuzzMySQLAuth compares how a login is passed on, packet by packet, with what both sides
// would have sent each other.
func FuzzMySQLAuth(f *testing.F) {
	f.Add([]byte("\xfemysql_native_password\x00scramble|\x00\x00\x00\x02\x00\x00\x00"), []byte("answer"))
	f.Add([]byte("\xfecaching_sha2_password\x00scramble|\x01\x03|\x00ok"), []byte("answer"))
	f.Add([]byte("\xfecaching_sha2_password\x00scramble|\x01\x04|\x01key|\x00ok"), []byte("answer|\x02|secret"))
	f.Add([]byte("\xff\x15\x04#28000no"), []byte(""))
	f.Add([]byte("\x00|x"), []byte(""))
	f.Add([]byte("|x"), []byte(""))
	f.Add([]byte(strings.Repeat("x|", 40)), []byte(strings.Repeat("y|", 40)))
	f.Fuzz(func(t *testing.T, asks, answers []byte) {
		greeting := []byte(mysqlGreeting("8")[4:])
		first := loginOf(1<<9|1<<11|1<<15|1<<19, "root\x00\x01xplugin\x00")
		anew, err := route.LoginAnew(first, 0x01ffffdf)
		if err != nil {
			t.Fatal(err)
		}
		// The numbers that both would use: each packet's is one more than that of the packet before it.
		fromServer, fromClient := packets(0, greeting), packets(2, first)
		toServer, toClient := packets(1, anew), []byte(nil)
		left := bytes.Split(answers, []byte("|"))
		number, decided, broken := byte(2), false, false
		for i, ask := range bytes.Split(asks, []byte("|")) {
			fromServer = append(fromServer, packets(number, ask)...)
			if i >= 32 || broken || decided {
				break
			}
			toClient = append(toClient, packets(number+1, ask)...)
			number++
			switch {
			case len(ask) == 0:
				broken = true
			case ask[0] == 0 || ask[0] == 0xff:
				decided = true
			case string(ask) == "\x01\x03":
			case len(left) == 0:
				broken = true
			default:
				fromClient = append(fromClient, packets(number+1, left[0])...)
				toServer = append(toServer, packets(number, left[0])...)
				left = left[1:]
				number++
			}
		}
		client, server := &peer{Reader: bytes.NewReader(fromClient)}, &peer{Reader: bytes.NewReader(fromServer)}
		err = route.LogIn(client, server)
		if (err == nil) != decided {
			t.Errorf("%q, %q: %v", asks, answers, err)
		}
		if !bytes.Equal(client.Bytes(), toClient) || !bytes.Equal(server.Bytes(), toServer) {
			t.Errorf("%q, %q: the client has got %q, want %q; the server %q, want %q", asks, answers, client.Bytes(), toClient, server.Bytes(), toServer)
		}
	})
}

func TestAMySQLLoginThatCannotBeIsRefusedInTheProtocolsWords(t *testing.T) {
	const usual = 1<<9 | 1<<11 | 1<<15 | 1<<19
	able := mysqlGreeting("8")[4:]
	unable := strings.Replace(able, "\xff\x01\x15", "\xff\x00\x15", 1) // without CLIENT_DEPRECATE_EOF
	for what, test := range map[string]struct {
		greeting string
		login    []byte
		want     string
	}{
		"a server that is full":     {"\xff\x10\x04Too many connections", loginOf(usual, "root\x00\x00p\x00"), "\xff\x10\x04Too many connections"},
		"a client of old":           {able, loginOf(1<<9|1<<15, "root\x00\x00"), "\xff\xe3\x04#08004the client does not know CLIENT_PLUGIN_AUTH"},
		"a server that lacks":       {unable, loginOf(usual|1<<24, "root\x00\x00p\x00"), "\xff\x13\x04#08S01the server lacks what the client counts on"},
		"a login without an end":    {able, loginOf(usual, "root"), "\xff\x13\x04#08S01the client does not log in as MySQL's do"},
		"another protocol's server": {"220 mx.test ESMTP\r\n", loginOf(usual, "root\x00\x00p\x00"), ""},
		"a greeting cut short":      {able[:20], loginOf(usual, "root\x00\x00p\x00"), ""},
	} {
		client := &peer{Reader: bytes.NewReader(packets(2, test.login))}
		server := &peer{Reader: bytes.NewReader(packets(0, []byte(test.greeting)))}
		err := route.LogIn(client, server)
		want := ""
		if test.want != "" {
			want = string(packets(3, []byte(test.want)))
		}
		if err == nil || client.String() != want || server.Len() != 0 {
			t.Errorf("%s: %v; the client has got %q, want %q; the server %q", what, err, client.String(), want, server.String())
		}
	}
	for what, client := range map[string]string{"another number": "\x01\x00\x00\x03x", "more than 64 KiB": "\x01\x00\x01\x02", "too little": "\x05\x00\x00\x02x"} {
		server := &peer{Reader: bytes.NewReader(packets(0, []byte(able)))}
		if err := route.LogIn(&peer{Reader: strings.NewReader(client)}, server); err == nil || server.Len() != 0 {
			t.Errorf("%s: %v, and the server has got %q", what, err, server.String())
		}
	}
	if err := route.LogIn(&peer{Reader: strings.NewReader("")}, &peer{Reader: bytes.NewReader(packets(0, []byte(able)))}); !errors.Is(err, io.EOF) {
		t.Errorf("a client that leaves: %v", err)
	}
}
