package app_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/levee-net/levee/internal/app"
)

func TestCommandLinesThatAreWrongAreToldSoInOneLine(t *testing.T) {
	two := write(t, "two.yaml", `version: 1
listeners:
  - {name: a, listen: ["127.0.0.1:0"], routes: [{handler: echo}]}
  - {name: b, listen: ["127.0.0.1:0"], routes: [{handler: echo}]}
`)
	one := write(t, "one.yaml", plain)
	tests := []struct {
		args, want string // the arguments, separated by spaces, and the line
	}{
		{"sevre", `unknown command "sevre"; did you mean serve? (see levee --help)`},
		{"xyz", `unknown command "xyz" (see levee --help)`},
		{"help xyz", `unknown command "xyz" (see levee --help)`},
		{"--lisen x", `unknown flag --lisen; did you mean --listen? (see levee --help)`},
		{"--bogus", `unknown flag --bogus (see levee --help)`},
		{"-c x", `unknown flag -c (see levee --help)`},
		{"serve --admni off", `unknown flag --admni; did you mean --admin? (see levee serve --help)`},
		{"schema --bogus", `unknown flag --bogus (see levee schema --help)`},
		{"version --bogus", `unknown flag --bogus (see levee version --help)`},
		{"check --listen x -c " + one, `unknown flag --listen (see levee check --help)`},
		{"--listen", `--listen needs a value (see levee --help)`},
		{"serve -c", `-c needs a value (see levee serve --help)`},

		{"serve", `serve: which configuration? name it with -c FILE (see levee serve --help)`},
		{"check", `check: which configuration? name it with -c FILE (see levee check --help)`},
		{"serve " + one, `serve: unexpected argument "` + one + `" (see levee serve --help)`},
		{"version x", `version: unexpected argument "x" (see levee version --help)`},
		{"schema x", `schema: unexpected argument "x" (see levee schema --help)`},
		{"--listen 127.0.0.1:0 serve -c " + one, `--listen stands before "serve", where it has no effect (see levee serve --help)`},
		{"--admin off check -c " + one, `--admin stands before "check", where it has no effect (see levee check --help)`},

		{"proxy", `proxy: --listen is missing: levee proxy --listen ADDR --to ADDR (see levee proxy --help)`},
		{"proxy --listen 127.0.0.1:0", `proxy: --to is missing: levee proxy --listen ADDR --to ADDR (see levee proxy --help)`},
		{"proxy --listen 127.0.0.1:0 --to x", `--to: "x" has no port; write x:8080`},
		{"proxy --listen 127.0.0.1:0 --to 127.0.0.1:1 --balance random", `--balance: unknown balance "random": there are round_robin, least_connections, p2c, source_hash, maglev`},
		{"proxy --listen 127.0.0.1:0 --to 127.0.0.1:1 --send-proxy v3", `--send-proxy: unknown PROXY header "v3"; there are v1 and v2`},
		{"proxy --listen 127.0.0.1:0 --to 127.0.0.1:1 --tls on", `--tls: "on" is neither off nor dev nor two files, CERT,KEY`},
		{"proxy --listen :0 --to 127.0.0.1:1", `--tls is missing: other machines can reach ":0"; say --tls CERT,KEY, --tls dev, or --tls off --insecure`},
		{"proxy --listen :0 --to 127.0.0.1:1 --tls off", `--tls off: other machines can reach ":0", and would talk in plaintext; say --insecure if that is meant`},
		{"proxy --listen 127.0.0.1:7000 --to 127.0.0.1:7000", `--to: upstreams[0].servers[0]: "127.0.0.1:7000" is where levee itself listens (listeners[0].listen[0]); write the address of a server behind it`},

		{"ban", `ban: whom? name an address, or a prefix such as 192.0.2.0/24 (see levee ban --help)`},
		{"ban db.example.com", `ban: "db.example.com" is not a prefix; write one such as 10.0.0.0/8, or an address (see levee ban --help)`},
		{"ban 192.0.2.1 192.0.2.2", `ban: unexpected argument "192.0.2.2" (see levee ban --help)`},
		{"ban 192.0.2.1 --four 1h", `unknown flag --four; did you mean --for? (see levee ban --help)`},
		{"unban 10.0.0.1/8", `unban: "10.0.0.1/8" has bits set beyond its length; write 10.0.0.0/8 (see levee unban --help)`},
		{"bans now", `bans: unexpected argument "now" (see levee bans --help)`},
		{"limits --admin off", `limits: --admin: where is it? write its address, such as 127.0.0.1:9180 (see levee limits --help)`},
		{"limits --admin 127.0.0.1", `limits: --admin: "127.0.0.1" has no port; write 127.0.0.1:8080 (see levee limits --help)`},

		{"status now", `status: unexpected argument "now" (see levee status --help)`},
		{"drain main", `drain: unexpected argument "main" (see levee drain --help)`},
		{"reload levee.yaml", `reload: unexpected argument "levee.yaml" (see levee reload --help)`},
		{"conns --client db.example.com", `conns: --client: "db.example.com" is not an address, nor a prefix such as 192.0.2.0/24 (see levee conns --help)`},
		{"conns --limit -1", `conns: --limit: at least 0, which is all (see levee conns --help)`},
		{"kill", `kill: which? name an ID of levee conns, or what they have in common, such as --client (see levee kill --help)`},
		{"kill 7 --listener main", `kill: an ID and what connections have in common: name one or the other (see levee kill --help)`},
		{"kill seven", `kill: "seven" is not the ID of a connection; levee conns shows them (see levee kill --help)`},
		{"upstreams main", `upstreams: unexpected argument "main" (see levee upstreams --help)`},
		{"upstreams drain main", `drain: which? name an upstream and its server, as levee upstreams shows them (see levee upstreams drain --help)`},
		{"upstreams undrain main a:1 b:1", `undrain: unexpected argument "b:1" (see levee upstreams undrain --help)`},
		{"top", `top: this is no terminal; say --once (see levee top --help)`},
		{"top --json", `top: --json goes with --once (see levee top --help)`},
		{"top --every 1ms", `top: --every: from 100ms to 1h (see levee top --help)`},
		{"top --once --limit 0", `top: --limit: from 1 to 1000 (see levee top --help)`},

		{"completion", `completion for which shell? bash, zsh, fish or pwsh (see levee completion --help)`},
		{"completion tcsh", `no completion for "tcsh": bash, zsh, fish or pwsh (see levee completion --help)`},

		{"--listen=", `--listen: is empty; write an address such as 127.0.0.1:8080`},
		{"--listen 127.0.0.1", `--listen: "127.0.0.1" has no port; write 127.0.0.1:8080`},
		{"--listen 127.0.0.1:http", `--listen: "127.0.0.1:http": port "http" is not a number from 0 to 65535`},
		{"--listen 127.0.0.1:65536", `--listen: "127.0.0.1:65536": port "65536" is not a number from 0 to 65535`},
		{"--listen ::1:80", `--listen: "::1:80" has no port; write [::1:80]:8080`},
		{"--listen unix:/tmp/x", `--listen: "unix:/tmp/x": port "/tmp/x" is not a number from 0 to 65535`},
		{"--listen \x1b[2J:80", `--listen: "\x1b[2J:80" is not an address; write one such as 127.0.0.1:8080`},
		{"--admin x", `--admin: "x" has no port; write x:8080`},
		{"--admin unix:run/x", `--admin: "unix:run/x": the path of a unix socket must be absolute, such as unix:/run/levee/admin.sock`},
		{"serve --listen 127.0.0.1:0 -c " + two, `--listen: the configuration has 2 listeners; change the address there`},

		{"--listen 0.0.0.0:0", `--listen: other machines can reach "0.0.0.0:0", and the built-in configuration lets plaintext in; use 127.0.0.1, or write a configuration with TLS (levee serve -c FILE)`},
		{"--listen :0", `--listen: other machines can reach ":0", and the built-in configuration lets plaintext in; use 127.0.0.1, or write a configuration with TLS (levee serve -c FILE)`},
		{"serve --listen 0.0.0.0:0 -c " + one, `--listen: listeners[0].listen[0]: "0.0.0.0:0" can be reached from other machines and tls.mode off lets plaintext in; set tls.mode: terminate, or insecure: true if that is meant`},
		{"--admin 0.0.0.0:0", `--admin: admin.listen: "0.0.0.0:0" can be reached from other machines; use a loopback address such as 127.0.0.1:9180, or unix:/run/levee/admin.sock, or say who may come in: by admin.token_file, or by admin.tls.client_ca`},
		{"--listen 127.0.0.1:9 --admin 127.0.0.1:9", `--listen: listeners[0].listen[0]: 127.0.0.1:9 cannot be bound beside 127.0.0.1:9 (admin.listen); change one of them`},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			code, stdout, stderr := result(t, app.Env{}, strings.Split(test.args, " ")...)
			if want := "levee: " + test.want + "\n"; code != 2 || stderr != want || stdout != "" {
				t.Errorf("exit code %d, standard error\n%s, standard output\n%s; want 2 and\n%s", code, stderr, stdout, want)
			}
		})
	}
}

func TestFilesThatAreNoConfigurationAreToldSoInOneLine(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	huge := file("huge.yaml", "")
	if err := os.Truncate(huge, 100<<20); err != nil {
		t.Fatal(err)
	}
	cut := strings.TrimSuffix(plain, "      - {handler: echo}\n")
	tests := []struct{ path, want string }{
		{filepath.Join(dir, "missing.yaml"), `PATH: no such file or directory`},
		{dir, `PATH: is a folder; name the file in it, such as PATH/levee.yaml`},
		{huge, `PATH: has 104857600 bytes; a configuration has at most 1048576`},
		{"/dev/zero", `PATH: is not a regular file`},
		{file("empty.yaml", ""), `PATH:1:1: is empty; begin with version: 1`},
		{file("comment.yaml", "# nothing\n"), `PATH:1:1: is empty; begin with version: 1`},
		{file("second.yaml", plain+"---\nversion: 1\n"), `PATH:9:1: a second document starts here; a configuration is one document`},
		{file("twice.yaml", plain+"version: 1\n"), `PATH:9:1: version: is given twice; the first is on line 1`},
		{file("unknown.yaml", plain+"drian: {}\n"), `PATH:9:1: unknown key "drian"; did you mean "drain"?`},
		{file("type.yaml", plain+"drain: {timeout: soon}\n"), `PATH:9:18: drain.timeout: `},
		{file("routes.yaml", cut), `PATH:7:9: listeners[0].routes[0]: has a match, and no route follows for the connections it leaves; add one without match, such as {refuse: true}`},
		{file("binary.yaml", "\x7fELF\x00"), `PATH:1:1: control character U+007F; remove it`},
	}
	for _, test := range tests {
		for _, command := range []string{"serve", "check"} {
			t.Run(command+" "+filepath.Base(test.path), func(t *testing.T) {
				if test.path == "/dev/zero" {
					if _, err := os.Stat(test.path); err != nil {
						t.Skip(err)
					}
				}
				code, stdout, stderr := result(t, app.Env{}, command, "-c", test.path)
				want := "levee: " + strings.ReplaceAll(test.want, "PATH", test.path)
				if code != 2 || !strings.HasPrefix(stderr, want) || strings.Count(stderr, "\n") != 1 || stdout != "" {
					t.Errorf("exit code %d, standard error\n%s, standard output\n%s; want 2 and\n%s", code, stderr, stdout, want)
				}
			})
		}
	}
}

func TestUnreadableFileIsToldSo(t *testing.T) {
	path := write(t, "levee.yaml", plain)
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(path); err == nil {
		t.Skip("this user may read everything; e2e has this test as another")
	}
	code, _, stderr := result(t, app.Env{}, "check", "-c", path)
	if want := "levee: " + path + ": permission denied\n"; code != 2 || stderr != want {
		t.Errorf("exit code %d, %q; want 2, %q", code, stderr, want)
	}
}

func TestEveryProblemOfAFileHasItsLine(t *testing.T) {
	path := write(t, "levee.yaml", "version: 2\nlisteners: []\n")
	code, _, stderr := result(t, app.Env{}, "check", "-c", path)
	lines := strings.Split(strings.TrimSuffix(stderr, "\n"), "\n")
	if code != 2 || len(lines) != 2 || !strings.HasPrefix(lines[0], "levee: "+path+":1:10: version: ") || !strings.HasPrefix(lines[1], "levee: "+path+":2:12: listeners: ") {
		t.Errorf("exit code %d and\n%s", code, stderr)
	}
}

func TestHelpNamesEveryCommandAndFlag(t *testing.T) {
	tests := []struct {
		args string
		want []string
	}{
		{"--help", []string{"serve ", "check ", "schema ", "version ", "help ", "completion ", "--listen ADDR", "--admin ADDR", "--version", "Exit codes: 0 "}},
		{"help", []string{"serve ", "--listen ADDR"}},
		{"-h", []string{"serve ", "--listen ADDR"}},
		{"serve --help", []string{"levee serve -c FILE", "--config FILE, -c FILE", "--listen ADDR", "--admin ADDR"}},
		{"help serve", []string{"levee serve -c FILE"}},
		{"check --help", []string{"levee check -c FILE"}},
		{"schema --help", []string{"levee schema > levee.schema.json"}},
		{"version --help", []string{"levee version"}},
		{"help help", []string{"levee help [COMMAND]"}},
		{"completion --help", []string{"source <(levee completion bash)", "compinit", "pwsh"}},
		{"completion zsh --help", []string{"levee completion zsh"}},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			code, stdout, stderr := result(t, app.Env{}, strings.Split(test.args, " ")...)
			if code != 0 || stderr != "" {
				t.Errorf("exit code %d, standard error %q", code, stderr)
			}
			for _, want := range test.want {
				if !strings.Contains(stdout, want) {
					t.Errorf("no %q in\n%s", want, stdout)
				}
			}
			for line := range strings.Lines(stdout) {
				if strings.HasPrefix(line, "GLOBAL") && test.args != "--help" && test.args != "help" && test.args != "-h" {
					t.Errorf("flags that the command does not take:\n%s", stdout)
				}
			}
		})
	}
}

func TestVersionIsOneLine(t *testing.T) {
	for _, args := range []string{"version", "--version"} {
		code, stdout, stderr := result(t, app.Env{}, args)
		if code != 0 || stderr != "" || !strings.HasPrefix(stdout, "levee ") || strings.Count(stdout, "\n") != 1 || !strings.Contains(stdout, " go1") {
			t.Errorf("levee %s: exit code %d, %q, %q", args, code, stdout, stderr)
		}
	}
}

func TestSchemaIsJSONThatKnowsTheListeners(t *testing.T) {
	code, stdout, stderr := result(t, app.Env{}, "schema")
	var schema struct{ Properties map[string]any }
	if err := json.Unmarshal([]byte(stdout), &schema); err != nil || code != 0 || stderr != "" || schema.Properties["listeners"] == nil {
		t.Errorf("exit code %d, %v, %q, standard output\n%s", code, err, stderr, stdout)
	}
}

func TestCompletionScriptsAreSound(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "pwsh"} {
		t.Run(shell, func(t *testing.T) {
			code, script, stderr := result(t, app.Env{}, "completion", shell)
			if code != 0 || stderr != "" || !strings.Contains(script, "--generate-shell-completion") {
				t.Fatalf("exit code %d, %q, script\n%s", code, stderr, script)
			}
			path, err := exec.LookPath(shell)
			if err != nil || shell == "pwsh" {
				t.Skip("no " + shell + " to check the script's syntax with")
			}
			if out, err := exec.CommandContext(t.Context(), path, "-n", write(t, "script", script)).CombinedOutput(); err != nil {
				t.Errorf("%s -n: %v\n%s", shell, err, out)
			}
		})
	}
}

func TestCheckPrintsWhatTheConfigurationAmountsTo(t *testing.T) {
	path := write(t, "levee.yaml", `version: 1
admin: {listen: "off"}
drain: {timeout: 7s}
listeners:
  - name: main
    listen: ["0.0.0.0:1"]
    insecure: true
    limits: {max_connections: 10}
    timeouts: {idle: "off", lifetime: 90m}
    routes: [{handler: echo}]
`)
	code, stdout, stderr := result(t, app.Env{}, "check", "-c", path)
	want := `main: no TLS; up to 10 connections; arrival 10s, proxy_header 5s, sniff 5s, idle off, half_closed 1m, write_stall 30s, message 1m, lifetime 1h30m
warning: main: plaintext is accepted (tls.mode: off)
warning: main: timeouts.idle is off: one client can hold a connection for ever
main: each address: 10 connections, new ones 50/s, 100 at once; shadow: only counted
bans: after 100 refusals in 1m, for 10m and up to 24h; shadow: only counted
warning: admin is off: no metrics, and nobody can ask whether it is healthy
drain: up to 7s after SIGTERM, the rest are cut
upgrade: by levee upgrade or SIGUSR2; the new process has 30s to get ready, is watched for 2s before it accepts, and for 5s before open connections move to it
` + path + ": ok\n"
	if code != 0 || stderr != "" || stdout != want {
		t.Errorf("exit code %d, standard error %q, standard output\n%s, want\n%s", code, stderr, stdout, want)
	}
}

func TestCheckSaysWhomTLSLetsIn(t *testing.T) {
	s := newSite(t)
	path := s.config(three+", client_ca: clients.pem, client_crl: clients.crl",
		"{match: {sni: p.example}, tls: passthrough, handler: discard}",
		"{name: b, match: {sni: b.example}, tls: {client_ca: clients.pem, client_optional: true, client_allow: {dns: [x.example, y.example], email: a@b}, tickets: {rotate: off}}, handler: echo}",
		"{handler: echo}")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s.put("levee.yaml", []byte(strings.Replace(string(content), "    routes:", "    starttls: postgres\n    limits: {max_connections: 10, handshakes: off}\n    routes:", 1)))
	code, stdout, stderr := result(t, app.Env{}, "check", "-c", path)
	want := strings.ReplaceAll(`main: TLS required, at once or as clients of postgres ask for it; up to 10 connections; arrival 10s, proxy_header 5s, sniff 5s, idle 5m, half_closed 1m, write_stall 30s, message 1m, lifetime off
warning: main: limits.handshakes is off: a flood of handshakes takes the processors from the connections that are there
main/b: clients may show a certificate of DIR/clients.pem that is on a list of 3
main/b: no client_crl: a client's certificate that is lost is good until it expires
main/b: no session tickets: who comes back makes a full handshake
main: clients need a certificate of DIR/clients.pem
main/routes[0]: TLS is passed through: who is behind asks for client certificates, if anybody does
main: each address: 10 connections, new ones 50/s, 100 at once; shadow: only counted
bans: after 100 refusals in 1m, for 10m and up to 24h; shadow: only counted
admin: every user and program of this machine may look on, end connections, ban clients and drain levee
drain: up to 25s after SIGTERM, the rest are cut
upgrade: by levee upgrade or SIGUSR2; the new process has 30s to get ready, is watched for 2s before it accepts, and for 5s before open connections move to it
`, "DIR", s.dir) + path + ": ok\n"
	if code != 0 || stderr != "" || stdout != want {
		t.Errorf("exit code %d, standard error %q, standard output\n%s, want\n%s", code, stderr, stdout, want)
	}
}

func TestCheckSaysWhatTLSDoesNotSee(t *testing.T) {
	s := newSite(t)
	path := s.put("levee.yaml", []byte(`version: 1
listeners:
  - {name: half, listen: ["127.0.0.1:1"], tls: {mode: optional, certificates: [{cert: a.pem, key: a-key.pem}], client_ca: clients.pem}, routes: [{handler: echo}]}
  - {name: either, listen: ["127.0.0.1:2"], tls: {mode: optional, certificates: [{cert: a.pem, key: a-key.pem}], client_ca: clients.pem, client_optional: true}, routes: [{handler: echo}]}
  - {name: mail, listen: ["127.0.0.1:3"], starttls: smtp, tls: {certificates: [{cert: a.pem, key: a-key.pem}]}, routes: [{handler: echo}]}
`))
	code, stdout, stderr := result(t, app.Env{}, "check", "-c", path)
	for _, want := range []string{
		"\nwarning: half: client_ca is only for those who come in TLS: tls.mode optional lets others in without a certificate\n",
		"\nmail: TLS required, as clients of smtp ask for it; ",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("there is no %q in\n%s", want, stdout)
		}
	}
	if code != 0 || stderr != "" || strings.Count(stdout, "warning: ") != 1 {
		t.Errorf("exit code %d, standard error %q, standard output\n%s", code, stderr, stdout)
	}
}

func TestCheckWritesNothing(t *testing.T) {
	path := write(t, "levee.yaml", `version: 1
listeners:
  - name: main
    listen: ["127.0.0.1:0"]
    tls: {development: true}
    routes: [{handler: echo}]
`)
	dir := t.TempDir()
	env := app.Env{ConfigDir: func() (string, error) { return dir, nil }}
	code, stdout, stderr := result(t, env, "check", "-c", path)
	if want := "main: its certificates are this machine's own; the CA is made at the first start\n"; code != 0 || stderr != "" || !strings.Contains(stdout, want) {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
	if left, err := os.ReadDir(dir); len(left) > 0 || err != nil {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
