package proxy_test

import (
	"bytes"
	"regexp"
	"strings"
	"testing"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/proxy"
)

// ends returns what a Rest is shown of an answer.
func ends(answer string) (first, last []byte) {
	return []byte(answer[:min(len(answer), levee.RestBytes)]), []byte(answer[max(0, len(answer)-levee.RestBytes):])
}

func TestAPostgresClientRestsBetweenTwoTransactions(t *testing.T) {
	for answer, want := range map[string]levee.Rest{
		"R\x00\x00\x00\x08\x00\x00\x00\x00S\x00\x00\x00\x16is_superuser\x00on\x00Z\x00\x00\x00\x05I": levee.AtRest,
		"C\x00\x00\x00\x0bCOMMIT\x00Z\x00\x00\x00\x05I":                                              levee.AtRest,
		"Z\x00\x00\x00\x05I":                                                 levee.AtRest, // of an empty Sync
		"C\x00\x00\x00\x0aBEGIN\x00Z\x00\x00\x00\x05T":                       levee.NotAtRest,
		"E\x00\x00\x00\x0bSERROR\x00\x00Z\x00\x00\x00\x05E":                  levee.NotAtRest,
		"C\x00\x00\x00\x0bCOMMIT\x00":                                        levee.RestUnknown, // the rest is on its way
		"C\x00\x00\x00\x0bCOMMIT\x00Z\x00\x00\x00\x05":                       levee.RestUnknown,
		"Z\x00\x00\x00\x05IA\x00\x00\x00\x10\x00\x00\x00\x07news\x00hot\x00": levee.RestUnknown, // a notification behind it
		"Z\x00\x00\x00\x05X":                                                 levee.RestUnknown,
		"\x00\x00\x00\x05I":                                                  levee.RestUnknown,
		"S":                                                                  levee.RestUnknown, // TLS is welcome
		"\x17\x03\x03\x00\x13\x8f\x01\x02\x03\x04\x05\x06":                   levee.RestUnknown, // and passes through
		"": levee.RestUnknown,
	} {
		if got := proxy.PostgresRest(ends(answer)); got != want {
			t.Errorf("%q: %d, want %d", answer, got, want)
		}
	}
}

func TestARedisClientRestsWhenItsCommandIsAnswered(t *testing.T) {
	long := strings.Repeat("x", 100)
	for answer, want := range map[string]levee.Rest{
		"+OK\r\n":                             levee.AtRest,
		"-ERR no\r\n":                         levee.AtRest,
		":1000\r\n":                           levee.AtRest,
		"$-1\r\n":                             levee.AtRest,
		"$5\r\nhello\r\n":                     levee.AtRest,
		"$100\r\n" + long + "\r\n":            levee.AtRest,
		"*2\r\n$1\r\na\r\n$1\r\nb\r\n":        levee.AtRest,
		"_\r\n":                               levee.AtRest,
		"%1\r\n+a\r\n:1\r\n":                  levee.AtRest,
		">2\r\n$10\r\ninvalidate\r\n*0\r\n":   levee.AtRest, // a cache of its client's hears of the world
		"+QUEUED\r\n":                         levee.NotAtRest,
		"+OK\r\n+QUEUED\r\n+QUEUED\r\n":       levee.NotAtRest,
		"+OK":                                 levee.RestUnknown,
		"$100\r\n" + long[:40]:                levee.RestUnknown,
		"":                                    levee.RestUnknown,
		"\x17\x03\x03\x00\x13 not a word\r\n": levee.RestUnknown,
		"*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n":                  levee.RestUnknown,
		"*3\r\n$10\r\npsubscribe\r\n$1\r\n*\r\n:1\r\n":                   levee.RestUnknown,
		"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$3\r\nhot\r\n":             levee.RestUnknown,
		">3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$3\r\nhot\r\n":             levee.RestUnknown,
		"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$100\r\n" + long + "\r\n":  levee.RestUnknown,
		"*4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$4\r\nnews\r\n$3\r\nhot\r\n": levee.RestUnknown,
		"*2\r\n$4\r\npong\r\n$0\r\n\r\n":                                 levee.RestUnknown, // only a subscriber gets such a one
		"*3\r\n$11\r\nunsubscribe\r\n$4\r\nnews\r\n:1\r\n":               levee.RestUnknown,
		"*3\r\n$11\r\nunsubscribe\r\n$4\r\nnews\r\n:0\r\n":               levee.AtRest,
		"*3\r\n$12\r\npunsubscribe\r\n$-1\r\n:0\r\n":                     levee.AtRest,
	} {
		if got := proxy.RedisRest(ends(answer)); got != want {
			t.Errorf("%q: %d, want %d", answer, got, want)
		}
	}
}

// The oracle says it in another way: by expressions over the whole.
var (
	ready  = regexp.MustCompile(`(?s)Z\x00\x00\x00\x05I$`)
	within = regexp.MustCompile(`(?s)Z\x00\x00\x00\x05[TE]$`)

	queued  = regexp.MustCompile(`(?s)\+QUEUED\r\n$`)
	reply   = regexp.MustCompile(`(?s)^[-+:$*_#,(!=%~>|].*\r\n$`)
	pushed  = regexp.MustCompile(`(?s)^[*>][^\r]*\r\n[^\r]*\r\n(p|s|)(message|subscribe|unsubscribe)\r\n|^[*>][^\r]*\r\n[^\r]*\r\npong\r\n`)
	nothing = regexp.MustCompile(`(?s)\r\n:0\r\n$`)
)

func FuzzRest(f *testing.F) {
	for _, answer := range []string{
		"C\x00\x00\x00\x0bCOMMIT\x00Z\x00\x00\x00\x05I", "Z\x00\x00\x00\x05T", "+OK\r\n", "+QUEUED\r\n", "*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n",
		"*3\r\n$11\r\nunsubscribe\r\n$4\r\nnews\r\n:0\r\n", ">\r\n\r\npong\r\n", "*\r\n\n\r\npong\r\n",
	} {
		f.Add([]byte(answer))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		first, last := ends(string(answer))
		kept := string(first) + string(last)
		postgres, redis := proxy.PostgresRest(first, last), proxy.RedisRest(first, last)
		if string(first)+string(last) != kept {
			t.Error("it has changed what it was shown")
		}
		want := levee.RestUnknown
		switch {
		case ready.Match(answer):
			want = levee.AtRest
		case within.Match(answer):
			want = levee.NotAtRest
		}
		if postgres != want {
			t.Errorf("postgres %q: %d, want %d", answer, postgres, want)
		}
		want = levee.RestUnknown
		switch {
		case !reply.Match(answer):
		case queued.Match(answer):
			want = levee.NotAtRest
		case !pushed.Match(first) || nothing.Match(answer):
			want = levee.AtRest
		}
		if bytes.ContainsRune(first, '\r') && strings.Contains(strings.ReplaceAll(string(first), "\r\n", ""), "\r") {
			return // the expression does not go past a bare one
		}
		if redis != want {
			t.Errorf("redis %q: %d, want %d", answer, redis, want)
		}
	})
}
