package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"math"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/levee-net/levee"
)

// inSeconds is what a JSON log of durations in seconds has as its ReplaceAttr.
func inSeconds(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.Float64Value(a.Value.Duration().Seconds())
	}
	return a
}

// bySlog returns the line that slog writes of what fill fills in.
func bySlog(t *testing.T, now time.Time, fill func(sheet)) string {
	t.Helper()
	var line attrLine
	fill(&line)
	var out bytes.Buffer
	r := slog.NewRecord(now, slog.LevelInfo, "connection", 0)
	r.AddAttrs(line.attrs...)
	if err := slog.NewJSONHandler(&out, &slog.HandlerOptions{ReplaceAttr: inSeconds}).Handle(context.Background(), r); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func byHand(now time.Time, fill func(sheet)) string {
	line := new(jsonLine)
	line.begin(now, "connection")
	fill(line)
	return string(line.end())
}

// hostile are texts that strangers may send to break a line, or whoever reads it.
var hostile = []string{
	"", "plain", `"},"level":"ERROR`, `\`, "a\nb\r\tc", "\x00\x01\x1f\x7f\u0080\u009f", "\x1b[2J\x1b]0;title\a", "\xff\xfe", "\xc3", "\xe2\x80",
	"\xed\xa0\x80", "\u2028\u2029", "\u202egnp.exe", "\ufeff", "\ufffd", "é日本😀", "<script>&amp;</script>", strings.Repeat("\x00", 600), strings.Repeat("é", 400),
	strings.Repeat("a", 65536), "a" + strings.Repeat("😀", 200),
}

var hardDurations = []time.Duration{
	0, 1, 999, time.Microsecond, 1001, 123456789, time.Second - 1, time.Second, time.Second + 1, 1<<53 + 1, math.MaxInt64,
	-1, -999, -time.Microsecond, -time.Second, math.MinInt64, 100 * time.Millisecond, 10 * time.Hour, 4300 * time.Millisecond, 1200 * time.Millisecond,
}

func FuzzALineIsWhatSlogWritesAndCanBeRead(f *testing.F) {
	for i, text := range hostile {
		f.Add(text, int64(hardDurations[i%len(hardDurations)]), int64(i)-3, int64(i)*1e9)
	}
	for _, d := range hardDurations {
		f.Add("x", int64(d), int64(d), int64(d))
	}
	f.Fuzz(func(t *testing.T, text string, took, count, at int64) {
		d := time.Duration(took)
		fill := func(s sheet) {
			s.count("conn", count)
			s.word("listener", text)
			s.took("duration", d)
			s.text("sni", text)
			s.phases("phases", levee.Moments{Routed: d, FirstByte: d / 2, Draining: -d}, d/3)
			s.count("left_out", count)
		}
		phase := func(routed time.Duration) time.Duration {
			if routed == 0 { // never: it was in this phase until its end
				return d / 3
			}
			return routed
		}
		now := time.Unix(0, at)
		line := byHand(now, fill)
		if want := bySlog(t, now, fill); line != want {
			t.Fatalf("%q, and slog has\n%q", line, want)
		}
		var got struct {
			Time     time.Time
			Msg      string
			Conn     int64
			Listener string
			SNI      string
			Duration float64
			Phases   map[string]float64
			LeftOut  int64 `json:"left_out"`
		}
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		valid := strings.ToValidUTF8(text, "\ufffd")
		if strings.Count(valid, "\ufffd") == strings.Count(string([]rune(text)), "\ufffd") && got.Listener != valid {
			t.Fatalf("%q was read as %q", text, got.Listener)
		}
		if got.SNI != printable(cut(text)) || got.Conn != count || got.LeftOut != count || got.Duration != d.Seconds() ||
			got.Phases["route"] != max(0, phase(d)).Seconds() || got.Msg != "connection" || !got.Time.Equal(now) {
			t.Fatalf("%q was read as %+v", line, got)
		}
		if strings.ContainsFunc(strings.TrimSuffix(line, "\n"), func(r rune) bool { return r < ' ' }) {
			t.Fatalf("%q has a control character", line)
		}
	})
}

func TestAddressesAreWrittenAsTheyCallThemselves(t *testing.T) {
	for _, a := range []net.Addr{
		&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 80}, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1).To4(), Port: 65535}, &net.TCPAddr{IP: net.IPv6loopback},
		&net.TCPAddr{IP: net.ParseIP("2001:db8::1"), Port: 443}, &net.TCPAddr{IP: net.ParseIP("::ffff:192.0.2.1"), Port: 1}, &net.TCPAddr{IP: net.IPv6zero, Port: 1},
		&net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0\"\n", Port: 1}, &net.TCPAddr{Port: 7}, &net.TCPAddr{IP: net.IP{1, 2, 3}, Port: 7}, (*net.TCPAddr)(nil),
		&net.UnixAddr{Name: "/run/\x00\"x", Net: "unix"}, &net.UnixAddr{},
	} {
		fill := func(s sheet) { s.address("client", a) }
		now := time.Unix(1, 0)
		if got, want := byHand(now, fill), bySlog(t, now, fill); got != want {
			t.Errorf("%s, and slog has %s", got, want)
		}
	}
}

func TestALineTakesNoMemory(t *testing.T) {
	line := new(jsonLine)
	client := &net.TCPAddr{IP: net.ParseIP("2001:db8::1"), Port: 443}
	write := func() {
		line.begin(time.Now(), "connection")
		line.count("conn", 1<<40)
		line.address("client", client)
		line.text("sni", "\x00\xff\"\u2028日本")
		line.word("listener", "\x00\xff\"\u2028日本")
		line.phases("phases", levee.Moments{Routed: 70 * time.Microsecond, FirstByte: time.Second}, 3*time.Hour)
		line.end()
	}
	write()
	if n := testing.AllocsPerRun(1000, write); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
