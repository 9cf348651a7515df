package e2e

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// chosen are the ports that a test has got: the next one does not, though nobody may be listening there yet.
var chosen sync.Map

// freePorts returns n ports that nobody has. They are below those that the kernel gives
// to clients: one of them might have it by the time that a server wants it.
func freePorts(t *testing.T, n int) []string {
	t.Helper()
	var ports []string
	for range 100 * n {
		port := strconv.Itoa(10_000 + rand.IntN(20_000))
		if _, taken := chosen.LoadOrStore(port, true); taken {
			continue
		}
		l, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err != nil {
			continue
		}
		defer l.Close() // not before all are chosen, so that they differ
		if ports = append(ports, port); len(ports) == n {
			return ports
		}
	}
	t.Fatal("no free ports")
	return nil
}

// listening starts a server that is not ours, and returns once its port accepts.
func listening(t *testing.T, port string, cmd *exec.Cmd) *process {
	t.Helper()
	need(t, cmd.Args[0])
	p := launch(t, cmd)
	eventually(t, cmd.Args[0]+" accepts", func() bool {
		select {
		case <-p.done:
			t.Fatalf("%s ended", cmd)
		default:
		}
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return p
}

// before starts `levee proxy` before a server.
func before(t *testing.T, server string, more ...string) *process {
	t.Helper()
	return start(t, append([]string{"proxy", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--to", server}, more...)...)
}

// proxying writes a configuration with one plaintext listener before a server. Overload is off unless top says so: a busy
// machine would turn newcomers away, whoever they are.
func proxying(t *testing.T, server, top, listener, upstream string) string {
	t.Helper()
	if !strings.Contains(top, "overload:") {
		top += "\noverload: {mode: off}"
	}
	return write(t, "levee.yaml", `version: 1
admin: {listen: 127.0.0.1:0}
`+top+`
listeners:
  - name: main
    listen: ["127.0.0.1:0"]
    `+listener+`
    routes: [{upstream: servers}]
upstreams:
  - name: servers
    servers: ["`+server+`"]
    `+upstream+`
`)
}

// portOf is an address's.
func portOf(t *testing.T, address string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// run runs another program, which has to succeed, and returns what it wrote.
func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := client(t, "", program, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// digest runs a command to its end, with a file as its input if there is one, and
// returns the checksum and the number of the bytes that it wrote.
func digest(t *testing.T, input string, cmd *exec.Cmd) string {
	t.Helper()
	if input != "" {
		file, err := os.Open(input)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		cmd.Stdin = file
	}
	var complaints strings.Builder
	cmd.Stderr = &complaints
	sum := sha256.New()
	size := &counter{w: sum}
	cmd.Stdout = size
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, &complaints)
	}
	return fmt.Sprintf("%d bytes, SHA-256 %x", size.n, sum.Sum(nil))
}

// A counter counts what it passes on.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// randomFile writes a file of bytes that nothing can compress or guess.
func randomFile(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "random")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	source := rand.NewChaCha8([32]byte{byte(size)})
	if _, err := io.CopyN(file, source, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// certificate makes a certificate for 127.0.0.1, localhost and a name, signed by itself.
func certificate(t *testing.T, dir, name string) (cert, key string) {
	t.Helper()
	cert, key = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem")
	run(t, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
		"-subj", "/CN="+name, "-addext", "subjectAltName=DNS:"+name+",DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", cert)
	return cert, key
}

// A cluster is a PostgreSQL server that is not running yet.
type cluster struct {
	t       *testing.T
	bin     string
	data    string
	account *syscall.SysProcAttr // the server's, which refuses to be root
	owner   int
	running *process
}

// newCluster makes a PostgreSQL server whose clients need no password.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t}
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin") // where Debian keeps what is not for clients
	if len(bins) == 0 {
		t.Skip("skipped: postgresql is not installed")
	}
	c.bin = slices.Max(bins)
	dir, err := os.MkdirTemp("", "levee-e2e") // t.TempDir is inside a folder that others may not enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if os.Getuid() == 0 {
		account, err := user.Lookup("postgres")
		if err != nil {
			t.Skipf("skipped: %v", err)
		}
		uid, _ := strconv.Atoi(account.Uid) // numbers, on every Unix
		gid, _ := strconv.Atoi(account.Gid)
		c.account = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		c.owner = uid
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	} else {
		c.owner = os.Getuid()
	}
	c.data = filepath.Join(dir, "data")
	initdb := c.command("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync", "-D", c.data)
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	return c
}

func (c *cluster) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(c.bin, program), args...)
	cmd.SysProcAttr = c.account
	cmd.Dir = filepath.Dir(c.data)
	return cmd
}

// give writes a file that the server can read, and returns its path.
func (c *cluster) give(name, from string) string {
	c.t.Helper()
	content, err := os.ReadFile(from)
	if err != nil {
		c.t.Fatal(err)
	}
	path := filepath.Join(filepath.Dir(c.data), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Chown(path, c.owner, -1); err != nil {
		c.t.Fatal(err)
	}
	return path
}

// again makes another server that is like this one.
func (c *cluster) again() *cluster {
	c.t.Helper()
	twin := *c
	twin.data = c.data + "2"
	copying := exec.Command("cp", "-a", c.data, twin.data)
	if out, err := copying.CombinedOutput(); err != nil {
		c.t.Fatalf("%v\n%s", err, out)
	}
	return &twin
}

// start starts the server and returns its address.
func (c *cluster) start(settings ...string) string {
	c.t.Helper()
	port := freePorts(c.t, 1)[0]
	args := []string{"-D", c.data, "-c", "listen_addresses=127.0.0.1", "-c", "port=" + port, "-c", "unix_socket_directories=", "-c", "fsync=off"}
	for _, setting := range settings {
		args = append(args, "-c", setting)
	}
	p := launch(c.t, c.command("postgres", args...))
	c.t.Cleanup(func() { // killed, it would leave shared memory behind
		_ = p.cmd.Process.Signal(syscall.SIGQUIT)
		select {
		case <-p.done:
		case <-time.After(patience):
		}
	})
	p.find(&p.stderr, `database system is ready to accept connections$`)
	c.running = p
	return "127.0.0.1:" + port
}

// redis starts a Redis server and returns its address.
func redis(t *testing.T, args ...string) string {
	t.Helper()
	port := freePorts(t, 1)[0]
	listening(t, port, exec.Command("redis-server", append([]string{"--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no", "--dir", t.TempDir()}, args...)...))
	return "127.0.0.1:" + port
}

// mosquito is an MQTT broker; its clients are mosquito+"_pub" and mosquito+"_sub".
const mosquito = "mosquitto" //nolint:misspell // its authors spell it so

// mqttBroker starts an MQTT broker that logs all it hears, and returns its address.
func mqttBroker(t *testing.T) (broker *process, address string) {
	t.Helper()
	need(t, mosquito+"_sub")
	port := freePorts(t, 1)[0]
	file := write(t, "mqtt.conf", "listener "+port+" 127.0.0.1\nallow_anonymous true\nlog_type all\nmax_queued_messages 0\nuser root\n") // if it is root's, it stays so
	return listening(t, port, exec.Command(mosquito, "-c", file)), "127.0.0.1:" + port
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// nginx starts nginx with what is to stand in its configuration, and returns once the
// port accepts.
func nginx(t *testing.T, port, config string) *process {
	t.Helper()
	const program = "/usr/sbin/nginx"
	need(t, program)
	dir, modules := t.TempDir(), ""
	if stream := "/usr/lib/nginx/modules/ngx_stream_module.so"; exists(stream) {
		modules = "load_module " + stream + ";"
	}
	config = modules + `
daemon off;
master_process off;
pid nginx.pid;
error_log stderr;
events {}
` + strings.Replace(config, "http {", `http {
	access_log off;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
	keepalive_requests 1000000;`, 1)
	return listening(t, port, exec.Command(program, "-p", dir, "-e", "stderr", "-c", write(t, "nginx.conf", config)))
}
