package probe_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/levee-net/levee/upstream/probe"
)

// agree holds a probe, with an answer whole and in pieces, against a reference that has
// the whole answer at hand and says whether the server is well.
func agree(t *testing.T, p probe.Probe, answer []byte, piece uint8, well bool) {
	t.Helper()
	for _, size := range []int{len(answer) + 1, int(piece) + 1} {
		if err := p(context.Background(), says(string(answer), size)); (err == nil) != well {
			t.Fatalf("in pieces of %d: %v, want well = %v", size, err, well)
		}
	}
}

func FuzzSendExpect(f *testing.F) {
	f.Add([]byte("220 ready"), []byte("220"), uint8(3))
	f.Add([]byte("aaab"), []byte("aab"), uint8(0))
	f.Fuzz(func(t *testing.T, answer, expect []byte, piece uint8) {
		well := bytes.Contains(answer[:min(len(answer), 16<<10)], expect)
		agree(t, probe.SendExpect(nil, expect), answer, piece, well)
	})
}

func FuzzPostgres(f *testing.F) {
	for _, answer := range []string{
		"R\x00\x00\x00\x08\x00\x00\x00\x00S\x00\x00\x00\x08a\x00b\x00Z\x00\x00\x00\x05I",
		"R\x00\x00\x00\x08\x00\x00\x00\x03",
		pgError("SFATAL", "C28P01", "Mdenied"),
		pgError("C57P03", "Mstarting up"),
		"N\x00\x00\x00\x04R\x00\x00\x00\x07\x00\x00\x00",
		"E\x00\x00\x00\x05\x00", "E\x00\x00\x00\x07C28", "HTTP/1.1 400 \r\n", "R\xff\xff\xff\xff",
	} {
		f.Add([]byte(answer), uint8(1))
	}
	f.Fuzz(func(t *testing.T, answer []byte, piece uint8) {
		agree(t, probe.Postgres("a", "b"), answer, piece, referencePostgres(answer))
	})
}

// referencePostgres cuts all messages off first and judges them afterwards.
func referencePostgres(answer []byte) (well bool) {
	var messages [][]byte
	answer = answer[:min(len(answer), 64<<10)]
	for len(answer) >= 5 {
		end := 1 + int(binary.BigEndian.Uint32(answer[1:]))
		if end < 5 || end > len(answer) {
			break // what is wrong or missing is the end of it
		}
		messages = append(messages, append([]byte{answer[0]}, answer[5:end]...))
		answer = answer[end:]
	}
	last := slices.IndexFunc(messages, func(m []byte) bool {
		return !bytes.ContainsAny(m[:1], "SKNR") || m[0] == 'R' && !bytes.HasPrefix(m, []byte("R\x00\x00\x00\x00"))
	})
	if last < 0 {
		return false
	}
	switch m := messages[last]; m[0] {
	case 'R':
		return len(m) >= 5
	case 'E':
		code, fields := "", strings.Split(string(m[1:]), "\x00")
		for i, field := range fields {
			if field == "" {
				break
			}
			if i == len(fields)-1 {
				return false // it has no end
			}
			if field[0] == 'C' {
				code = field[1:]
			}
		}
		return strings.HasPrefix(code, "28") || strings.HasPrefix(code, "3D") || code == "42501"
	}
	return messages[last][0] == 'Z'
}

func FuzzMySQL(f *testing.F) {
	for _, answer := range []string{
		greeting + "\x07\x00\x00\x02\x00\x00\x00\x02\x00\x00\x00",
		greeting + "\x02\x00\x00\x02\xfex" + mysqlError(4, 1045, "#28000Access denied"),
		greeting + mysqlError(2, 1040, "#08004Too many connections"),
		mysqlError(0, 1040, "Too many connections"),
		"\x01\x00\x00\x00\x0a\x01\x00\x00\x02\x02",
		"\x00\x00\x00\x00", "\xff\xff\xff\x00\x0a",
	} {
		f.Add([]byte(answer), uint8(1))
	}
	f.Fuzz(func(t *testing.T, answer []byte, piece uint8) {
		agree(t, probe.MySQL(""), answer, piece, referenceMySQL(answer))
	})
}

// referenceMySQL cuts all packets off first and judges them afterwards.
func referenceMySQL(answer []byte) (well bool) {
	var packets [][]byte
	answer = answer[:min(len(answer), 64<<10)]
	for len(answer) > 4 {
		length := int(answer[0]) + int(answer[1])<<8 + int(answer[2])<<16
		if length == 0 || 4+length > len(answer) {
			break
		}
		packets = append(packets, answer[4:4+length])
		answer = answer[4+length:]
	}
	if len(packets) == 0 {
		return false
	}
	if packets[0][0] != 0xff {
		if packets[0][0] != 10 {
			return false
		}
		packets = packets[1:]
		for asked := 1; len(packets) > 0 && packets[0][0] == 0xfe; asked++ {
			if asked == 4 {
				return false
			}
			packets = packets[1:]
		}
	}
	if len(packets) == 0 {
		return false
	}
	if verdict := packets[0]; verdict[0] == 0xff {
		codes := []string{"\x14\x04", "\x15\x04", "\xe3\x04", "\xa2\x06", "\x46\x07", "\x2e\x0c", "\x57\x0c", "\x37\x10", "\x46\x10"}
		return len(verdict) >= 3 && slices.Contains(codes, string(verdict[1:3]))
	}
	return true
}

func FuzzRedis(f *testing.F) {
	for _, answer := range []string{
		"+PONG\r\n", "+OK\r\n+PONG\r\n", "-NOAUTH x\r\n-NOAUTH x\r\n", "-LOADING x\r\n", "+PONG\n", "\r\n", ":1\r\n", "+a\rb\r\n+PONG\r\n",
	} {
		f.Add([]byte(answer), uint8(1))
	}
	f.Fuzz(func(t *testing.T, answer []byte, piece uint8) {
		agree(t, probe.Redis(""), answer, piece, referenceRedis(answer, 0, "-NOAUTH"))
		agree(t, probe.Redis("secret"), answer, piece, referenceRedis(answer, 1, "+PONG\r\n"))
	})
}

// referenceRedis looks at the line with the given number, which PONG or something that
// begins with orElse has to be.
func referenceRedis(answer []byte, line int, orElse string) (well bool) {
	lines := strings.SplitAfter(string(answer), "\n")
	for i := range line + 1 {
		if i >= len(lines) || len(lines[i]) < 3 || len(lines[i]) > 4096 ||
			!strings.HasSuffix(lines[i], "\r\n") || !strings.ContainsAny(lines[i][:1], "+-") {
			return false
		}
	}
	return lines[line] == "+PONG\r\n" || strings.HasPrefix(lines[line], orElse)
}
