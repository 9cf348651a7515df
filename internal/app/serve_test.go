package app_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/levee-net/levee/internal/app"
	"github.com/levee-net/levee/leveetest"
)

func TestBuiltInConfigurationSpeaksThreeProtocolsOnOnePort(t *testing.T) {
	leveetest.CheckLeaks(t)
	r := start(t, app.Env{}, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
	address := r.address()

	echo := dial(t, address)
	send(t, echo, "hi\n")
	expect(t, echo, "hi\n")

	if status, body := get(t, "http://"+address+"/"); status != 200 || body != "Hello from levee, in plaintext.\n" {
		t.Errorf("HTTP: %d %q", status, body)
	}

	ca, err := os.ReadFile(r.find(&r.stdout, `-CAfile '(.*)' -connect`))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	secure := tls.Client(dial(t, address), &tls.Config{RootCAs: roots, ServerName: "localhost"})
	send(t, secure, "GET / HTTP/1.0\r\n\r\n")
	answer, err := io.ReadAll(secure)
	if err != nil || !strings.HasSuffix(string(answer), "\r\n\r\nHello from levee, over TLS.\n") || secure.ConnectionState().Version != tls.VersionTLS13 {
		t.Errorf("TLS: %q, %v", answer, err)
	}

	for path, want := range map[string]string{"/readyz": "ok\n", "/livez": "ok\n"} {
		if status, body := get(t, r.admin(path)); status != 200 || body != want {
			t.Errorf("%s: %d %q", path, status, body)
		}
	}
	// The other two have left, but their server may not have noticed yet.
	active := func() bool {
		_, body := get(t, r.admin("/metrics"))
		return strings.Contains(body, "\n"+`levee_connections_active{listener="main"} 1`+"\n")
	}
	for late := time.Now().Add(patience); !active(); {
		if time.Now().After(late) {
			t.Fatal("the metrics never say that one connection is open")
		}
	}

	r.signals <- os.Interrupt
	if code := r.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestFirstWordsAreWhatIsOpenAndWhatToTry(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "it's here")
	r := start(t, app.Env{ConfigDir: func() (string, error) { return dir, nil }}, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
	address, metrics := r.address(), r.admin("/metrics")
	_, port, _ := net.SplitHostPort(address)
	want := fmt.Sprintf(`Listening on %s
Try   printf 'hi\n' | nc -N 127.0.0.1 %s
      curl http://%s/
      openssl s_client -brief -CAfile '%s' -connect %s
Metrics on %s
`, address, port, address, strings.ReplaceAll(filepath.Join(dir, "levee", "ca.pem"), "'", `'\''`), address, metrics)
	if got := r.stdout.String(); got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
}

func TestOwnConfigurationGetsNoSuggestions(t *testing.T) {
	r := start(t, app.Env{}, "serve", "--admin", "off", "-c", write(t, "levee.yaml", plain))
	if got, want := r.stdout.String(), "Listening on "+r.address()+"\n"; got != want && r.stdout.String() != want {
		t.Errorf("got %q, want %q", got, want)
	}
	r.logged("admin is off: no metrics, and nobody can ask whether it is healthy")
}

func TestPortInUseNamesItsOwner(t *testing.T) {
	leveetest.CheckLeaks(t) // nothing that was opened before stays open
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() })
	address := taken.Addr().String()
	owner := ""
	if runtime.GOOS == "linux" {
		name, err := os.ReadFile("/proc/self/comm")
		if err != nil {
			t.Fatal(err)
		}
		owner = fmt.Sprintf(" by %q (process %d)", strings.TrimSpace(string(name)), os.Getpid())
	}
	two := write(t, "two.yaml", fmt.Sprintf(`version: 1
listeners:
  - {name: a, listen: ["127.0.0.1:0"], routes: [{handler: echo}]}
  - {name: b, listen: ["127.0.0.1:0", %q], routes: [{handler: echo}]}
`, address))
	tests := []struct{ args, want string }{
		{"--listen " + address, "listener main: listen on " + address + ": bind: address already in use" + owner + "; stop that, or choose another with --listen"},
		{"--listen 127.0.0.1:0 --admin " + address, "admin: listen on " + address + ": bind: address already in use" + owner + "; stop that, or choose another with --admin"},
		{"serve -c " + two, "listener b: listen on " + address + ": bind: address already in use" + owner + "; stop that, or change it in the configuration"},
	}
	for _, test := range tests {
		code, stdout, stderr := result(t, app.Env{}, strings.Split(test.args, " ")...)
		if want := "levee: " + test.want + "\n"; code != 3 || stderr != want || stdout != "" {
			t.Errorf("levee %s: exit code %d, standard error\n%s, standard output\n%s; want 3 and\n%s", test.args, code, stderr, stdout, want)
		}
	}
}

func TestPortOwnerIsTheOneOfThatAddress(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("owners are known on Linux only")
	}
	// The whole of 127.0.0.0/8 is this machine, so another address's port is free.
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	_, port, _ := net.SplitHostPort(other.Addr().String())
	r := start(t, app.Env{}, "--listen", "127.0.0.2:"+port, "--admin", "off")
	if got := r.address(); got != "127.0.0.2:"+port {
		t.Errorf("listens on %s", got)
	}
	code, _, stderr := result(t, app.Env{}, "--admin", "off", "--listen", "[::ffff:127.0.0.2]:"+port)
	if code != 3 || !strings.Contains(stderr, " by ") {
		t.Errorf("exit code %d, %q: the owner of 127.0.0.2 is not found by its IPv6 name", code, stderr)
	}
}

func TestAddressOfAnotherMachineIsRefused(t *testing.T) {
	path := write(t, "levee.yaml", strings.Replace(plain, "listen: [", "insecure: true\n    listen: [", 1))
	code, stdout, stderr := result(t, app.Env{}, "serve", "--listen", "192.0.2.1:0", "-c", path)
	want := "levee: listener main: listen on 192.0.2.1:0: bind: cannot assign requested address: this machine has no such address; choose another with --listen\n"
	if code != 3 || stderr != want || stdout != "" {
		t.Errorf("exit code %d, %q, %q", code, stderr, stdout)
	}
}

func TestUnixAdminSocketIsItsOwnersAlone(t *testing.T) {
	leveetest.CheckLeaks(t)
	dir, err := os.MkdirTemp("", "levee") // t.TempDir may be longer than a socket's path can be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "admin.sock")
	r := start(t, app.Env{}, "--listen", "127.0.0.1:0", "--admin", "unix:"+path)
	if got := r.find(&r.stdout, `^Metrics on unix socket (.*)\n`); got != path {
		t.Errorf("says %q", got)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	dialPath := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	transport := &http.Transport{DialContext: dialPath, DisableKeepAlives: true}
	answer, err := (&http.Client{Transport: transport, Timeout: patience}).Get("http://localhost/readyz")
	if err != nil || answer.StatusCode != 200 {
		t.Fatal(answer, err)
	}
	answer.Body.Close()

	code, stdout, stderr := result(t, app.Env{}, "--listen", "127.0.0.1:0", "--admin", "unix:"+path)
	if want := "levee: admin: listen on unix:" + path + ": bind: address already in use; free it, or choose another with --admin\n"; code != 3 || stderr != want || stdout != "" {
		t.Errorf("a second one: exit code %d, %q, %q", code, stderr, stdout)
	}

	r.signals <- syscall.SIGTERM
	r.wait()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestStaleAdminSocketIsReplacedAndNothingElse(t *testing.T) {
	dir, err := os.MkdirTemp("", "levee")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	stale, file := filepath.Join(dir, "stale.sock"), filepath.Join(dir, "file")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: stale})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}

	r := start(t, app.Env{}, "--listen", "127.0.0.1:0", "--admin", "unix:"+stale)
	r.find(&r.stdout, `^Metrics on unix socket (.*)\n`)

	code, _, stderr := result(t, app.Env{}, "--listen", "127.0.0.1:0", "--admin", "unix:"+file)
	if want := "levee: admin: listen on unix:" + file + ": there is a file that is no socket: address already in use; free it, or choose another with --admin\n"; code != 3 || stderr != want {
		t.Errorf("exit code %d, %q", code, stderr)
	}
	if content, err := os.ReadFile(file); string(content) != "precious" {
		t.Errorf("the file is now %q, %v", content, err)
	}
}

func TestBadCertificateIsNamedWithItsLine(t *testing.T) {
	ca := leveetest.NewCA(t)
	dir := t.TempDir()
	certA, keyA := ca.WriteFiles(dir, "a.example")
	_, keyB := ca.WriteFiles(dir, "b.example")
	config := func(cert, key string) string {
		path := filepath.Join(dir, "levee.yaml")
		text := fmt.Sprintf(`version: 1
admin: {listen: "off"}
listeners:
  - name: main
    listen: ["127.0.0.1:0"]
    tls:
      certificates:
        - {cert: %s, key: %s}
    routes: [{handler: echo}]
`, filepath.Base(cert), filepath.Base(key))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := []struct{ cert, key, want string }{
		{"missing.pem", keyA, "certificate: open DIR/missing.pem: no such file or directory"},
		{certA, "missing.pem", "certificate key: open DIR/missing.pem: no such file or directory"},
		{certA, keyB, "certificate " + certA + " with key " + keyB + ": tls: private key does not match public key"},
		{keyA, keyA, "certificate " + keyA + " with key " + keyA + ": tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been switched"},
	}
	for _, test := range tests {
		path := config(test.cert, test.key)
		for _, command := range []string{"check", "serve"} {
			code, stdout, stderr := result(t, app.Env{}, command, "-c", path)
			want := "levee: " + path + ":8:11: " + strings.ReplaceAll(test.want, "DIR", dir) + "\n"
			if code != 2 || stderr != want || stdout != "" {
				t.Errorf("%s: exit code %d, %q, want\n%q", command, code, stderr, want)
			}
		}
	}
	if code, _, stderr := result(t, app.Env{}, "check", "-c", config(certA, keyA)); code != 0 {
		t.Errorf("a good pair: exit code %d, %s", code, stderr)
	}
}

func TestWithoutAFolderTheDevelopmentCALivesInMemory(t *testing.T) {
	file, locked := write(t, "file", ""), t.TempDir()
	if err := os.Chmod(locked, 0o500); err != nil {
		t.Fatal(err)
	}
	tests := map[string]func() (string, error){
		"no folder is known":     func() (string, error) { return "", fs.ErrNotExist },
		"the folder is a file":   func() (string, error) { return file, nil },
		"the folder is readonly": func() (string, error) { return locked, nil },
	}
	for name, dir := range tests {
		t.Run(name, func(t *testing.T) {
			if f, err := os.CreateTemp(locked, ""); err == nil && strings.HasSuffix(name, "readonly") {
				f.Close()
				t.Skip("this user may write everywhere; e2e has this test as another")
			}
			r := start(t, app.Env{ConfigDir: dir}, "--listen", "127.0.0.1:0", "--admin", "off")
			c := tls.Client(dial(t, r.address()), &tls.Config{InsecureSkipVerify: true})
			send(t, c, "hi")
			expect(t, c, "hi")
			if line := r.logged("the development CA is kept in memory only"); line["level"] != "WARN" || line["err"] == nil {
				t.Errorf("%v", line)
			}
			r.logged("main: its certificates are this machine's own; they last until levee ends")
			if strings.Contains(r.stdout.String(), "CAfile") {
				t.Errorf("names a file that is not there:\n%s", &r.stdout)
			}
		})
	}
}

func TestDevelopmentCAThatOthersCanReadIsRefused(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("access is not a matter of mode bits here")
	}
	dir := t.TempDir()
	env := app.Env{ConfigDir: func() (string, error) { return dir, nil }}
	r := start(t, env, "--listen", "127.0.0.1:0", "--admin", "off")
	r.address()
	r.signals <- os.Interrupt
	r.wait()
	key := filepath.Join(dir, "levee", "ca-key.pem")
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := result(t, env, "--listen", "127.0.0.1:0", "--admin", "off")
	want := "levee: development CA: " + key + " can be read by others (mode 0644): chmod 600 it, or remove it to have a new one made\n"
	if code != 2 || stderr != want {
		t.Errorf("exit code %d, %q, want 2, %q", code, stderr, want)
	}
}

func TestLogsAreJSONForProgramsAndTextForPeople(t *testing.T) {
	t.Setenv("NO_COLOR", "")
	const wall = "main: each address: 256 connections, new ones 50/s, 100 at once; shadow: only counted"
	r := start(t, app.Env{}, "--listen", "127.0.0.1:0", "--admin", "off")
	r.address()
	r.signals <- syscall.SIGTERM
	r.wait()
	if line := r.logged("draining"); line["timeout"] != 25.0 || line["signal"] != "terminated" {
		t.Errorf("a duration is not in seconds, or the signal is missing: %v", line)
	}
	if line := r.logged(wall); line["level"] != "INFO" {
		t.Errorf("%v", line)
	}
	if took, ok := r.logged("drained")["took"].(float64); !ok || took > patience.Seconds() {
		t.Errorf("drained after %v", took)
	}

	r = start(t, app.Env{Terminal: true}, "--listen", "127.0.0.1:0", "--admin", "off")
	r.address()
	if text := r.says(wall); !strings.Contains(text, "\x1b[") || !strings.Contains(text, " "+wall+"\n") {
		t.Errorf("not for people:\n%s", text)
	}
	t.Setenv("NO_COLOR", "1")
	r = start(t, app.Env{Terminal: true}, "--listen", "127.0.0.1:0", "--admin", "off")
	r.address()
	if text := r.says(wall); strings.Contains(text, "\x1b") || !strings.Contains(text, " INF "+wall+"\n") {
		t.Errorf("coloured in spite of NO_COLOR:\n%s", text)
	}
}

func TestBytesOfAStrangerCannotForgeALogLine(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			config := strings.Replace(plain, "routes:", `proxy_protocol: {from: ["127.0.0.1"]}
    routes:`, 1) + "telemetry: {logs: {level: debug, format: " + format + "}}\n"
			r := start(t, app.Env{}, "serve", "-c", write(t, "levee.yaml", config))
			c := dial(t, r.address())
			send(t, c, "PROXY TCP4 \x1b[2J\xff \x00\" 1 2\r\n")
			io.Copy(io.Discard, c)
			r.find(&r.stderr, `proxy_header_invalid`)
			for _, c := range r.stderr.String() {
				if c == utf8.RuneError || c != '\n' && !unicode.IsPrint(c) {
					t.Fatalf("%q in\n%q", c, &r.stderr)
				}
			}
		})
	}
}

func TestSIGHUPKillsNothing(t *testing.T) {
	r := start(t, app.Env{}, "--listen", "127.0.0.1:0", "--admin", "off")
	c := dial(t, r.address())
	send(t, c, "hi")
	expect(t, c, "hi")
	r.signals <- syscall.SIGHUP
	r.find(&r.stderr, `the configuration is not from a file`)
	send(t, c, "still here")
	expect(t, c, "still here")
	r.signals <- syscall.SIGTERM
	if code := r.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// stuck is a connection that does not leave: after one request that was answered,
// the client has sent half of the next.
func stuck(t *testing.T, r *run) net.Conn {
	t.Helper()
	c := dial(t, r.address())
	send(t, c, "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
	for head := ""; !strings.HasSuffix(head, "\r\n\r\n"); {
		b := make([]byte, 1)
		if _, err := c.Read(b); err != nil {
			t.Fatalf("%q, %v", head, err)
		}
		head += string(b)
	}
	send(t, c, "GET / HTTP/1.1\r\nHost: x\r\n")
	return c
}

func TestFirstSignalDrainsAndSecondCutsAtOnce(t *testing.T) {
	leveetest.CheckLeaks(t)
	r := start(t, app.Env{}, "--listen", "127.0.0.1:0", "--admin", "off")
	c := stuck(t, r)
	r.signals <- os.Interrupt
	r.find(&r.stderr, `"draining"`)
	r.signals <- syscall.SIGHUP // no second signal to stop
	select {
	case <-r.done:
		t.Fatalf("did not wait for the request:\n%s", &r.stderr)
	default:
	}
	began := time.Now()
	r.signals <- os.Interrupt
	if code := r.wait(); code != 1 || time.Since(began) > time.Second {
		t.Errorf("exit code %d after %v", code, time.Since(began))
	}
	if line := r.logged("drained, but connections that had not finished were cut"); line["cut"] != 1.0 || line["level"] != "ERROR" {
		t.Errorf("%v", line)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the connection is still open")
	}
}

func TestRequestThatEndsDuringTheDrainIsAnswered(t *testing.T) {
	r := start(t, app.Env{}, "--listen", "127.0.0.1:0", "--admin", "off")
	c := stuck(t, r)
	r.signals <- os.Interrupt
	r.find(&r.stderr, `"draining"`)
	send(t, c, "\r\n")
	answer, err := io.ReadAll(c)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 OK\r\n") || !strings.HasSuffix(string(answer), "\r\n\r\nHello from levee, in plaintext.\n") {
		t.Errorf("%q, %v", answer, err)
	}
	if code := r.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestAtTheDrainDeadlineTheRestIsCutAndCounted(t *testing.T) {
	leveetest.CheckLeaks(t)
	config := plain + "drain: {timeout: 100ms}\n"
	r := start(t, app.Env{}, "serve", "-c", write(t, "levee.yaml", config))
	stuck(t, r)
	stuck(t, r)
	began := time.Now()
	r.signals <- syscall.SIGTERM
	if code, took := r.wait(), time.Since(began); code != 1 || took < 100*time.Millisecond || took > 2*time.Second {
		t.Errorf("exit code %d after %v", code, took)
	}
	line := r.logged("drained, but connections that had not finished were cut")
	if took, _ := line["took"].(float64); line["cut"] != 2.0 || took < 0.1 {
		t.Errorf("%v", line)
	}
}

func TestBeforeItDrainsItIsNotReadyButStillAccepts(t *testing.T) {
	leveetest.CheckLeaks(t)
	config := plain + "drain: {pre_stop: 1h}\n"
	r := start(t, app.Env{}, "serve", "-c", write(t, "levee.yaml", config))
	ready, address := r.admin("/readyz"), r.address()
	inMetrics := func(value string) bool {
		_, body := get(t, strings.Replace(ready, "readyz", "metrics", 1))
		return strings.Contains(body, "\nlevee_ready "+value+"\n")
	}
	if status, _ := get(t, ready); status != 200 || !inMetrics("1") {
		t.Fatalf("not ready at first: %d", status)
	}
	r.signals <- syscall.SIGTERM
	r.find(&r.stderr, `"not ready any more, still accepting","pre_stop":3600`)
	if status, body := get(t, ready); status != 503 || body != "not ready\n" || !inMetrics("0") {
		t.Errorf("%d %q, want 503", status, body)
	}
	if status, _ := get(t, strings.Replace(ready, "readyz", "livez", 1)); status != 200 {
		t.Errorf("not alive: %d", status)
	}
	c := dial(t, address)
	send(t, c, "hi")
	expect(t, c, "hi")

	r.signals <- syscall.SIGTERM // enough of that
	r.wait()
	if c, err := net.Dial("tcp", address); err == nil {
		c.Close()
		t.Error("still listening")
	}
}

func TestAfterThePauseItDrains(t *testing.T) {
	config := plain + "drain: {pre_stop: 50ms}\n"
	r := start(t, app.Env{}, "serve", "-c", write(t, "levee.yaml", config))
	r.address()
	began := time.Now()
	r.signals <- syscall.SIGTERM
	if code, took := r.wait(), time.Since(began); code != 0 || took < 50*time.Millisecond {
		t.Errorf("exit code %d after %v", code, took)
	}
}
