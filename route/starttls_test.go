package route_test

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
	"github.com/levee-net/levee/route"
)

// A language is a protocol in which TLS begins by a command.
type language struct {
	route.Dialogue
	greeting string // what the server begins with; ? is any letter
	begin    []step // how a client comes to TLS
	ahead    string // the answer to the last of these if there is something behind it
	declined []step // what else clients say, and what they are told where TLS is required
	refused  []step // what ends the connection there, by its last byte
	most     string // the end of a client that never comes to the point; it repeats the first of declined
}

const (
	mysqlSSLRequest = "\x20\x00\x00\x01\x00\x8a\x08\x00" + "\x00\x00\x00\x01\x2d" + "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	mysqlBad        = "\x16\x00\x00\x02\xff\x13\x04#08S01bad handshake"

	ldapStartTLS = "\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037"
	ldapAgreed   = "\x30\x24\x02\x01\x01\x78\x1f\x0a\x01\x00\x04\x00\x04\x00\x8a\x161.3.6.1.4.1.1466.20037"
	ldapSearch   = "\x30\x25\x02\x01\x05\x63\x20\x04\x00\x0a\x01\x00\x0a\x01\x00\x02\x01\x00\x02\x01\x00\x01\x01\x00\x87\x0bobjectclass\x30\x00"
	ldapBind     = "\x30\x0c\x02\x01\x02\x60\x07\x02\x01\x03\x04\x00\x80\x00"
	ldapUnbind   = "\x30\x05\x02\x01\x03\x42"
	ldapAbandon  = "\x30\x06\x02\x01\x03\x50\x01\x01"
	ldapWhoAmI   = "\x30\x1e\x02\x01\x06\x77\x19\x80\x171.3.6.1.4.1.4203.1.11.3"
)

// mysqlGreeting is a server's first packet.
func mysqlGreeting(version string) string {
	payload := "\x0a" + version + "\x00\x00\x00\x00\x00" + "????????\x00\xdf\xff\x2d\x02\x00\xff\x01\x15" + strings.Repeat("\x00", 10) + "????????????\x00mysql_native_password\x00"
	return string([]byte{byte(len(payload)), 0, 0, 0}) + payload
}

func mysqlSaid(text string) string {
	return string([]byte{byte(1 + len(text)), 0, 0, 2}) + "\xff" + text
}

// ldapSaid is an answer with a code and a text.
func ldapSaid(id, operation, code byte, text, name string) string {
	result := string([]byte{0x0a, 1, code, 0x04, 0, 0x04, byte(len(text))}) + text
	if name != "" {
		result += string([]byte{0x8a, byte(len(name))}) + name
	}
	return string([]byte{0x30, byte(len(result) + 5), 2, 1, id, operation, byte(len(result))}) + result
}

func ldapDeclined(id, operation byte) string {
	return ldapSaid(id, operation, 13, "StartTLS has to come first", "")
}

func ldapNotice(text string) string {
	return ldapSaid(0, 0x78, 2, text, "1.3.6.1.4.1.1466.20036")
}

var languages = map[string]language{
	"SMTP": {
		Dialogue: route.SMTPTLS("mx.test"),
		greeting: "220 mx.test ESMTP\r\n",
		begin:    []step{{"EHLO client.test\r\n", "250-mx.test\r\n250 STARTTLS\r\n"}, {"STARTTLS\r\n", "220 2.0.0 Ready to start TLS\r\n"}},
		ahead:    "503 5.5.1 Nothing may follow STARTTLS before its answer\r\n",
		declined: []step{
			{"NOOP\r\n", "250 2.0.0 OK\r\n"},
			{"noop x\r\n", "250 2.0.0 OK\r\n"},
			{"HELO client.test\r\n", "530 5.7.0 Must issue a STARTTLS command first\r\n"},
			{"MAIL FROM:<a@b.test> SIZE=1\r\n", "530 5.7.0 Must issue a STARTTLS command first\r\n"},
			{"AUTH PLAIN AGEAYg==\r\n", "530 5.7.0 Must issue a STARTTLS command first\r\n"},
			{"EHLO\r\n", "501 5.5.4 Say who you are\r\n"},
			{"STARTTLS now\r\n", "501 5.5.4 STARTTLS has no parameters\r\n"},
			{"HELP " + strings.Repeat("x", 505) + "\r\n", "530 5.7.0 Must issue a STARTTLS command first\r\n"},
		},
		refused: []step{
			{"QUIT\r\n", "221 2.0.0 Bye\r\n"},
			{"G", "500 5.5.2 This is not SMTP\r\n"},
			{"NOOQ", "500 5.5.2 This is not SMTP\r\n"},
			{"EHLOX", "500 5.5.2 This is not SMTP\r\n"},
			{"\x16", "500 5.5.2 This is not SMTP\r\n"},
			{"EHLO b\xfc", "500 5.5.2 This is not SMTP\r\n"},
			{"EHLO a\n", "500 5.5.2 This is not SMTP\r\n"},
			{"EHLO a\rS", "500 5.5.2 This is not SMTP\r\n"},
			{"EHLO \x00", "500 5.5.2 This is not SMTP\r\n"},
			{"\r", "500 5.5.2 This is not SMTP\r\n"}, // an empty line, or half of a PROXY header
			{"NOOP " + strings.Repeat("x", 507), "500 5.5.2 Line too long\r\n"},
		},
		most: "421 4.7.0 Too many commands before STARTTLS\r\n",
	},
	"IMAP": {
		Dialogue: route.IMAPTLS,
		greeting: "* OK [CAPABILITY IMAP4rev1 IMAP4rev2 STARTTLS LOGINDISABLED] ready\r\n",
		begin: []step{
			{"a1 CAPABILITY\r\n", "* CAPABILITY IMAP4rev1 IMAP4rev2 STARTTLS LOGINDISABLED\r\na1 OK done\r\n"},
			{"a2 starttls\r\n", "a2 OK Begin TLS negotiation now\r\n"},
		},
		ahead: "a2 BAD Nothing may follow STARTTLS before its answer\r\n* BYE\r\n",
		declined: []step{
			{"x NOOP\r\n", "x OK done\r\n"},
			{"x LOGIN a b\r\n", "x NO [PRIVACYREQUIRED] STARTTLS comes first\r\n"},
			{"x AUTHENTICATE PLAIN AGEAYg==\r\n", "x NO [PRIVACYREQUIRED] STARTTLS comes first\r\n"},
			{"x LOGIN {1}\r\n", "x NO [PRIVACYREQUIRED] STARTTLS comes first\r\n"},
			{"x ID NIL\r\n", "x NO [PRIVACYREQUIRED] STARTTLS comes first\r\n"},
			{"x STARTTLS x\r\n", "x BAD syntax\r\n"},
			{"x \r\n", "x BAD syntax\r\n"},
			{"x\r\n", "x BAD syntax\r\n"},
		},
		refused: []step{
			{"x LOGOUT\r\n", "* BYE\r\nx OK done\r\n"},
			{"x LOGIN {20+}\r\n", "* BYE STARTTLS comes first\r\n"},
			{"GET /", "* BYE This is not IMAP\r\n"},
			{"\x16", "* BYE This is not IMAP\r\n"},
			{"\r", "* BYE This is not IMAP\r\n"},
			{" ", "* BYE This is not IMAP\r\n"},
			{"*", "* BYE This is not IMAP\r\n"},
			{"+", "* BYE This is not IMAP\r\n"},
			{"x  ", "* BYE This is not IMAP\r\n"},
			{"x NOOP\n", "* BYE This is not IMAP\r\n"},
			{strings.Repeat("x", 65), "* BYE This is not IMAP\r\n"},
			{"x NOOP " + strings.Repeat("x", 1017), "* BYE Line too long\r\n"},
		},
		most: "* BYE Too many commands before STARTTLS\r\n",
	},
	"MySQL": {
		Dialogue: route.MySQLTLS("8.4.0"),
		greeting: mysqlGreeting("8.4.0"),
		begin:    []step{{mysqlSSLRequest, ""}},
		ahead:    "", // the client sees to its handshake by then
		refused: []step{
			{"\x21\x00\x00\x01\x00\x82\x08\x00", mysqlSaid("\x57\x0c#HY000this server takes encrypted connections only")},
			{"\x00\x00\x01", mysqlBad}, // 64 KiB
			{"\x20\x00\x00\x00", mysqlBad},
			{"\x20\x00\x00\x02", mysqlBad},
			{"\x1f\x00\x00\x01", mysqlBad},
			{"\x21\x00\x00\x01\x00\x80\x08\x00", mysqlBad}, // an older protocol
			{"\x20\x00\x00\x01\x00\x82\x08\x00", mysqlBad}, // neither a login nor for TLS
			{"GET", mysqlBad},
			{"\x16\x03\x01", mysqlBad},
		},
	},
	"LDAP": {
		Dialogue: route.LDAPTLS,
		begin:    []step{{ldapStartTLS, ldapAgreed}},
		ahead:    ldapNotice("nothing may follow StartTLS before its answer"),
		declined: []step{
			{ldapBind, ldapDeclined(2, 0x61)},
			{ldapSearch, ldapDeclined(5, 0x65)},
			{ldapWhoAmI, ldapDeclined(6, 0x78)},
			{"\x30\x84\x00\x00\x00\x0c" + ldapBind[2:], ldapDeclined(2, 0x61)}, // as Active Directory's clients write lengths
			{"\x30\x05\x02\x01\x07\x4a\x00", ldapDeclined(7, 0x6b)},
			{ldapAbandon + ldapBind, ldapDeclined(2, 0x61)},
		},
		refused: []step{
			{ldapUnbind, ""},
			{"G", ldapNotice("this is not LDAP")},
			{"\x30\x80", ldapNotice("this is not LDAP")},                                                           // of indefinite length
			{"\x30\x85", ldapNotice("this is not LDAP")},                                                           // a length of five bytes
			{"\x30\x82\x40\x01", ldapNotice("this is not LDAP")},                                                   // more than 16 KiB
			{"\x30\x00", ldapNotice("this is not LDAP")},                                                           // nothing in it
			{"\x30\x0c\x04", ldapNotice("this is not LDAP")},                                                       // no number
			{"\x30\x0c\x02\x00", ldapNotice("this is not LDAP")},                                                   // an empty one
			{"\x30\x0c\x02\x01\x80", ldapNotice("this is not LDAP")},                                               // a negative one
			{"\x30\x0c\x02\x05\x01\x00\x00\x00\x00", ldapNotice("this is not LDAP")},                               // too large a one
			{"\x30\x0c\x02\x01\x01\x61", ldapNotice("this is not LDAP")},                                           // an answer
			{"\x30\x1f\x02\x01\x01\x77\x1a\x80\x161.3.6.1.4.1.1466.20037\x81\x00", ldapNotice("this is not LDAP")}, // with a value
			{"\x30\x1f\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037\xa0\x00", ldapNotice("this is not LDAP")}, // with controls
			{"\x30\x05\x02\x01\x01\x77\x18", ldapNotice("this is not LDAP")},                                       // longer than what it is in
		},
		most: ldapNotice("too many operations before StartTLS"),
	},
}

// router is what the language is tested with.
func (l *language) router(ca *leveetest.CA, required bool) *route.Router {
	return &route.Router{StartTLS: l.Dialogue, RequireTLS: required, TLS: ca.ServerConfig("*.test"), Routes: []route.Route{
		{Match: route.SNI("a.test"), Handler: named("a")}, elseRoute,
	}}
}

// greeted connects, and takes the server's greeting.
func (l *language) greeted(t *testing.T, s *server) net.Conn {
	t.Helper()
	c := s.dial(t)
	l.takeGreeting(t, c)
	return c
}

func (l *language) takeGreeting(t *testing.T, c io.Reader) {
	t.Helper()
	got := make([]byte, len(l.greeting))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatal(err)
	}
	for i, b := range []byte(l.greeting) {
		if b != got[i] && (b != '?' || !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", rune(got[i]))) {
			t.Fatalf("it greets with %q, want %q", got, l.greeting)
		}
	}
}

// in runs a test for each language.
func inAllLanguages(t *testing.T, test func(t *testing.T, l *language, ca *leveetest.CA)) {
	ca := leveetest.NewCA(t)
	for name, l := range languages {
		t.Run(name, func(t *testing.T) { test(t, &l, ca) })
	}
}

func TestAClientBeginsTLSByItsProtocolsCommand(t *testing.T) {
	inAllLanguages(t, func(t *testing.T, l *language, ca *leveetest.CA) {
		for _, required := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				s := serveRoutes(t, l.router(ca, required))
				for name, want := range map[string]string{"a.test": "a", "b.test": "else"} {
					raw := l.greeted(t, s)
					converse(t, raw, l.begin...)
					if got, err := askTLS(raw, ca.ClientConfig(name)); got != want+` "hi"` || err != nil {
						t.Errorf("%s: %q, %v", name, got, err)
					}
				}
			})
		}
	})
}

func TestOtherCommandsAreDeclinedInTheProtocolsWordsUntilTLS(t *testing.T) {
	inAllLanguages(t, func(t *testing.T, l *language, ca *leveetest.CA) {
		synctest.Test(t, func(t *testing.T) {
			s := serveRoutes(t, l.router(ca, true))
			for _, other := range l.declined {
				raw := l.greeted(t, s)
				converse(t, raw, other)
				io.WriteString(raw, other.send) // and once more, in one piece
				converse(t, raw, step{"", other.answer})
				converse(t, raw, l.begin...)
				if got, err := askTLS(raw, ca.ClientConfig("a.test")); got != `a "hi"` || err != nil {
					t.Errorf("%q: %q, %v", other.send, got, err)
				}
			}
		})
	})
}

// What comes between the request and the hello could be taken for something that came
// encrypted: CVE-2011-0411.
func TestNothingInPlaintextGetsBehindTheRequestForTLS(t *testing.T) {
	inAllLanguages(t, func(t *testing.T, l *language, ca *leveetest.CA) {
		for _, required := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				s := serveRoutes(t, l.router(ca, required))
				last := l.begin[len(l.begin)-1]
				for _, ahead := range []string{"x", "RSET\r\n", "MAIL FROM:<mallory@b.test>\r\n", last.send, hello("a.test")} {
					if last.answer == "" && ahead[0] == 22 { // nothing has to be waited for
						continue
					}
					raw := l.greeted(t, s)
					converse(t, raw, l.begin[:len(l.begin)-1]...)
					io.WriteString(raw, last.send+ahead)
					if got, err := io.ReadAll(raw); string(got) != l.ahead || err != nil {
						t.Errorf("%q behind it: %q, %v, want %q", ahead, got, err, l.ahead)
					}
					wantEnd(t, s, levee.NoRoute, route.ErrPlaintext)
				}
				for _, next := range []string{"x", "MAIL FROM:<mallory@b.test>\r\n", last.send} {
					raw := l.greeted(t, s)
					converse(t, raw, l.begin...)
					io.WriteString(raw, next)
					if got, err := io.ReadAll(raw); len(got) != 0 || err != nil {
						t.Errorf("%q after the answer: %q, %v", next, got, err)
					}
					wantEnd(t, s, levee.NoRoute, route.ErrPlaintext)
				}
				for _, next := range []string{"\x16\x03\x01\x00\x05RSET\r", "\x16\x03\x01\x00\x01\x01RSET\r\n"} { // as if it were TLS
					raw := l.greeted(t, s)
					converse(t, raw, l.begin...)
					io.WriteString(raw, next)
					if got, err := io.ReadAll(raw); string(got) != "\x15\x03\x03\x00\x02\x02\x32" || err != nil {
						t.Errorf("%q after the answer: %q, %v", next, got, err)
					}
					wantEnd(t, s, levee.NoRoute, route.ErrBadHello)
				}
			})
		}
	})
}

func TestADialogueEndsAtTheByteThatMakesItGarbage(t *testing.T) {
	inAllLanguages(t, func(t *testing.T, l *language, ca *leveetest.CA) {
		synctest.Test(t, func(t *testing.T) {
			s := serveRoutes(t, l.router(ca, true))
			for _, garbage := range l.refused {
				raw := l.greeted(t, s)
				var got []byte
				over := make(chan struct{})
				go func() { // ends with raw
					defer close(over)
					got, _ = io.ReadAll(raw)
				}()
				for i, b := range []byte(garbage.send) {
					if isClosed(over) {
						t.Errorf("%q: it ended after %d bytes", garbage.send, i)
					}
					raw.Write([]byte{b})
					synctest.Wait()
				}
				if !isClosed(over) {
					t.Errorf("%q: it goes on", garbage.send)
				}
				raw.Close()
				if <-over; string(got) != garbage.answer {
					t.Errorf("%q: %q, want %q", garbage.send, got, garbage.answer)
				}
				if end := wantEnd(t, s, levee.NoRoute, route.ErrPlaintext); end.Duration != 0 {
					t.Errorf("%q: after %v", garbage.send, end.Duration)
				}
			}
		})
	})
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestADialogueIsBounded(t *testing.T) {
	inAllLanguages(t, func(t *testing.T, l *language, ca *leveetest.CA) {
		synctest.Test(t, func(t *testing.T) {
			s := serveRoutes(t, l.router(ca, true))
			if l.most != "" {
				raw := l.greeted(t, s)
				for range 10 {
					converse(t, raw, l.declined[0])
				}
				if got, err := io.ReadAll(raw); string(got) != l.most || err != nil {
					t.Errorf("it says %q, %v, want %q", got, err, l.most)
				}
				wantEnd(t, s, levee.NoRoute, route.ErrPlaintext)
			}
			for n := range l.begin { // and then nothing
				raw := l.greeted(t, s)
				converse(t, raw, l.begin[:n]...)
				raw.Write([]byte(l.begin[n].send[:4]))
				wantReaped(t, s, 5*time.Second)
			}
			raw := l.greeted(t, s)
			converse(t, raw, l.begin...)
			wantReaped(t, s, 5*time.Second)

			raw = l.greeted(t, s)
			raw.Write([]byte(l.begin[0].send[:4]))
			raw.Close()
			wantEnd(t, s, levee.ClientAborted, io.EOF)
		})
	})
}

func wantReaped(t *testing.T, s *server, after time.Duration) {
	t.Helper()
	if end := wantEnd(t, s, levee.ArrivalTimeout, nil); end.Duration != after {
		t.Errorf("it ends after %v, want %v", end.Duration, after)
	}
}

func TestLDAPInPlaintextIsLeftAsItIsWhereTLSIsNotRequired(t *testing.T) {
	ca := leveetest.NewCA(t)
	l := languages["LDAP"]
	synctest.Test(t, func(t *testing.T) {
		s := serveRoutes(t, l.router(ca, false))
		for _, text := range []string{ldapBind, ldapSearch + ldapBind, ldapWhoAmI, ldapUnbind, "GET / HTTP/1.1\r\n", "\x30", "", ldapStartTLS[:20]} {
			if got := ask(t, s, strings.Split(text, "")...); got != fmt.Sprintf("else %q", text) {
				t.Errorf("%q: %s", text, got)
			}
		}
	})
}

func TestAnLDAPClientMayBeginWithItsHello(t *testing.T) {
	ca := leveetest.NewCA(t)
	l := languages["LDAP"]
	for _, required := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := serveRoutes(t, l.router(ca, required))
			wantSaid(t, s, ca.ClientConfig("a.test"), ldapBind, "a")
		})
	}
}

// A client of MySQL waits for no answer to its request.
func TestAHelloMayFollowAMySQLClientsRequestAtOnce(t *testing.T) {
	ca := leveetest.NewCA(t)
	l := languages["MySQL"]
	synctest.Test(t, func(t *testing.T) {
		raw := l.greeted(t, serveRoutes(t, l.router(ca, true)))
		c := &prefixed{Conn: raw, first: mysqlSSLRequest}
		if got, err := askTLS(c, ca.ClientConfig("a.test")); got != `a "hi"` || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	})
}

// A prefixed connection begins with something else.
type prefixed struct {
	net.Conn
	first string
}

func (c *prefixed) Write(p []byte) (int, error) {
	_, err := c.Conn.Write(append([]byte(c.first), p...))
	c.first = ""
	return len(p), err
}

func TestCommandsInOneSegmentAreAnsweredInTheirOrder(t *testing.T) {
	ca := leveetest.NewCA(t)
	l := languages["SMTP"]
	synctest.Test(t, func(t *testing.T) {
		raw := l.greeted(t, serveRoutes(t, l.router(ca, true)))
		io.WriteString(raw, "EHLO a\r\nNOOP\r\nSTARTTLS\r\n")
		converse(t, raw, step{"", "250-mx.test\r\n250 STARTTLS\r\n250 2.0.0 OK\r\n220 2.0.0 Ready to start TLS\r\n"})
		if got, err := askTLS(raw, ca.ClientConfig("a.test")); got != `a "hi"` || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	})
}

func TestWhatCannotBeANameOrAVersionIsNotTaken(t *testing.T) {
	for what, dialogue := range map[string]func(){
		"a host with a line's end": func() { route.SMTPTLS("mx.test\r\n220 x") },
		"a version with a NUL":     func() { route.MySQLTLS("8\x00") },
		"a long version":           func() { route.MySQLTLS(strings.Repeat("8", 65)) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: it is taken", what)
				}
			}()
			dialogue()
		}()
	}
}

func TestDialoguesHaveNamesOfTheirOwn(t *testing.T) {
	ca := leveetest.NewCA(t)
	for _, l := range []language{
		{Dialogue: route.MySQLTLS(""), greeting: mysqlGreeting("8.0.11-levee")},
		{Dialogue: route.SMTPTLS(""), greeting: "220 "},
	} {
		synctest.Test(t, func(t *testing.T) {
			l.greeted(t, serveRoutes(t, l.router(ca, true)))
		})
	}
}
