package config

import (
	"strings"
	"testing"
)

func TestParseAddress(t *testing.T) {
	for _, c := range []struct {
		text, want string
		loopback   bool
	}{
		{"127.0.0.1:80", "127.0.0.1:80", true},
		{"127.9.9.9:080", "127.9.9.9:80", true},
		{"[::1]:0", "[::1]:0", true},
		{"[::ffff:127.0.0.1]:1", "[::ffff:127.0.0.1]:1", true},
		{"[127.0.0.1]:1", "127.0.0.1:1", true},
		{"localhost:65535", "localhost:65535", true},
		{"LocalHost:1", "LocalHost:1", true},
		{":80", ":80", false},
		{"0.0.0.0:80", "0.0.0.0:80", false},
		{"[::]:80", "[::]:80", false},
		{"10.0.0.1:80", "10.0.0.1:80", false},
		{"[fe80::1%eth0.5]:80", "[fe80::1%eth0.5]:80", false},
		{"localhost.example.com:80", "localhost.example.com:80", false},
		{"127.0.0.1.example.com:80", "127.0.0.1.example.com:80", false},
		{"db_1.internal.:80", "db_1.internal.:80", false},
	} {
		got, err := ParseAddress(c.text)
		if err != nil || got.String() != c.want || got.Network != "tcp" || got.Loopback() != c.loopback || got.Off() {
			t.Errorf("ParseAddress(%q) = %+v, %v; loopback %v, want %s and %v", c.text, got, err, got.Loopback(), c.want, c.loopback)
		}
	}
}

func TestParseAddressRefusesWhatCannotBeListenedOn(t *testing.T) {
	for _, text := range []string{
		"", ":", "80", "localhost", "::1:80", "[::1]", "[::1:80", "1.2.3:80", "256.0.0.1:80", "0x7f000001:-1",
		"host:99999", "host:+1", "host:000080", "host: 1", "ho st:1", "-:", "host..name:1", ".:1", "[fe80::1%a b]:80", "hôte:80", "unix:/x", "off",
		strings.Repeat("a.", 127) + "com:80", strings.Repeat("a", 64) + ".com:80",
	} {
		if got, err := ParseAddress(text); err == nil {
			t.Errorf("ParseAddress(%q) = %+v", text, got)
		}
	}
}

func TestParseAdminAddress(t *testing.T) {
	for _, c := range []struct {
		text     string
		want     Address
		loopback bool
	}{
		{"off", Address{}, false},
		{"unix:/run/levee/admin.sock", Address{Network: "unix", Address: "/run/levee/admin.sock"}, true},
		{"localhost:9180", Address{Network: "tcp", Address: "localhost:9180"}, true},
		{":9180", Address{Network: "tcp", Address: ":9180"}, false},
	} {
		got, err := ParseAdminAddress(c.text)
		if err != nil || got != c.want || got.String() != c.text || got.Loopback() != c.loopback {
			t.Errorf("ParseAdminAddress(%q) = %+v, %v", c.text, got, err)
		}
	}
	for _, text := range []string{"Off", "false", "unix:", "unix:x", "unix:@x", "unix:/", "unix:/a\x00b"} {
		if got, err := ParseAdminAddress(text); err == nil {
			t.Errorf("ParseAdminAddress(%q) = %+v", text, got)
		}
	}
}
