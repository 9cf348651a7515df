package proxy

import (
	"bytes"

	"github.com/levee-net/levee"
)

// PostgresRest is an upstream's Rest (see [levee.Upstream]) where that is a PostgreSQL server: its client is to leave
// between two transactions. It goes by the server's ReadyForQuery, which ends each of its answers and says whether a
// transaction is open:
//
//	https://www.postgresql.org/docs/current/protocol-message-formats.html#PROTOCOL-MESSAGE-FORMATS-READYFORQUERY
//
// A client that sends several queries, each with a Sync, without waiting for the answers may still wait for one.
func PostgresRest(_, last []byte) levee.Rest {
	status, ok := bytes.CutPrefix(last[max(0, len(last)-6):], []byte{'Z', 0, 0, 0, 5})
	if !ok || len(status) != 1 {
		return levee.RestUnknown
	}
	switch status[0] {
	case 'I':
		return levee.AtRest
	case 'T', 'E':
		return levee.NotAtRest
	}
	return levee.RestUnknown
}

// RedisRest is an upstream's Rest where that is a Redis server: its client is to leave when its command has been
// answered, unless that is queued for EXEC. Of one that has subscribed to something nothing is known. Nor can it be told
// that MULTI has been answered and no command after it was sent, or that an answer of several lines is to go on:
//
//	https://redis.io/docs/latest/develop/reference/protocol-spec/
func RedisRest(first, last []byte) levee.Rest {
	switch {
	case len(first) == 0 || !bytes.ContainsRune([]byte("+-:$*_#,(!=%~>|"), rune(first[0])) || !bytes.HasSuffix(last, []byte("\r\n")):
		return levee.RestUnknown // it is in the middle of something, or not what it is taken for
	case bytes.HasSuffix(last, []byte("+QUEUED\r\n")):
		return levee.NotAtRest
	case isPush(first) && !bytes.HasSuffix(last, []byte("\r\n:0\r\n")): // which says that nothing is subscribed to any more
		return levee.RestUnknown
	}
	return levee.AtRest
}

// isPush reports whether an answer begins with what only subscribers get: ahead of its name are how many elements there
// are, and how long it is.
func isPush(first []byte) bool {
	if first[0] != '*' && first[0] != '>' {
		return false
	}
	parts := bytes.SplitN(first, []byte("\r\n"), 4)
	if len(parts) < 3 {
		return false
	}
	switch string(parts[2]) {
	case "message", "pmessage", "smessage", "subscribe", "psubscribe", "ssubscribe", "unsubscribe", "punsubscribe", "sunsubscribe", "pong":
		return true
	}
	return false
}
