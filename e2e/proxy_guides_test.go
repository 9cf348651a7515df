package e2e

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A guide is a page that tells people what to type. Here it is typed.
type guide struct {
	t    *testing.T
	page string
	dir  string            // where it is typed, and files are
	here map[string]string // what the page's addresses are here
	has  map[string]int    // how many blocks of each kind

	levee *process // the one that runs
}

// guideBlock is a block of a kind: what stands in it.
var guideBlock = regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```$")

// play types what the page says, and compares what comes with what the page says that comes.
func (g *guide) play() {
	g.t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "docs", "guides", g.page))
	if err != nil {
		g.t.Fatal(err)
	}
	text := g.translate(string(page))
	if left := regexp.MustCompile(`\b10\.0\.0\.\d+|\b(www|db|bastion|redis|mqtt)\.example\.com`).FindString(strings.Join(guideBlock.FindAllString(text, -1), "")); left != "" {
		g.t.Errorf("what is %s here?", left)
	}
	kinds := make(map[string]int)
	for _, block := range guideBlock.FindAllStringSubmatch(text, -1) {
		kind, content := block[1], block[2]
		kinds[kind]++
		switch kind {
		case "yaml":
			if err := os.WriteFile(filepath.Join(g.dir, "levee.yaml"), []byte(content), 0o600); err != nil {
				g.t.Fatal(err)
			}
		case "console":
			g.console(content)
		case "sh": // docs/site asks each of these how it is tested
		default:
			g.t.Errorf("nobody knows how to try %s", kind)
		}
	}
	if !maps.Equal(kinds, g.has) {
		g.t.Errorf("it has blocks %v, want %v", kinds, g.has)
	}
	g.stop()
}

// translate puts this test's addresses in place of the page's, the longer ones first.
func (g *guide) translate(text string) string {
	var pairs []string
	for _, there := range slices.SortedFunc(maps.Keys(g.here), func(a, b string) int { return len(b) - len(a) }) {
		pairs = append(pairs, there, g.here[there])
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

// console types commands, after "$ ", and reads what follows each of them.
func (g *guide) console(content string) {
	g.t.Helper()
	for _, entry := range strings.Split("\n"+content, "\n$ ")[1:] {
		command, want, _ := strings.Cut(strings.TrimSuffix(entry, "\n")+"\n", "\n")
		if line, background := strings.CutSuffix(command, " &"); background {
			g.start(line)
			continue
		}
		got := g.typed(command)
		for late := time.Now().Add(patience); !says(got, want) && strings.HasPrefix(command, "curl ") && time.Now().Before(late); {
			got = g.typed(command) // metrics follow what they count
		}
		if !says(got, want) {
			g.t.Errorf("%s\ngot  %s\nwant %s", command, got, want)
		}
	}
}

// says compares what came with what a page says, where … is what differs from time to time: words of a line, or, alone on
// it, any number of lines.
func says(got, want string) bool {
	pattern := regexp.QuoteMeta(want)
	pattern = strings.ReplaceAll("\n"+pattern, "\n…\n", "\n(?:.*\n)*")
	pattern = strings.ReplaceAll(pattern, "…", ".*")
	return regexp.MustCompile("^" + pattern + "$").MatchString("\n" + got)
}

// typed returns what a command says.
func (g *guide) typed(command string) string {
	ctx, cancel := context.WithTimeout(g.t.Context(), patience)
	defer cancel()
	shell := exec.CommandContext(ctx, "sh", "-c", command)
	shell.Dir, shell.Env = g.dir, g.environment()
	out, err := shell.CombinedOutput()
	if err != nil {
		return string(out) + err.Error()
	}
	return string(out)
}

func (g *guide) environment() []string {
	path := "PATH=" + g.dir + "/bin:" + filepath.Dir(levee) + ":" + os.Getenv("PATH")
	return []string{path, "HOME=" + g.dir, "LEVEE_ADMIN=" + g.here["127.0.0.1:9180"]}
}

// start starts levee, in place of the one that runs.
func (g *guide) start(command string) {
	g.t.Helper()
	g.stop()
	// It has its metrics where the page says, which another levee of this machine may have too.
	cmd := exec.Command("sh", "-c", "exec "+command+" --admin "+g.here["127.0.0.1:9180"])
	cmd.Dir, cmd.Env = g.dir, g.environment()
	g.levee = launch(g.t, cmd)
	g.levee.admin("/readyz")
}

// stop ends the levee that runs, as its users do.
func (g *guide) stop() {
	g.t.Helper()
	if g.levee == nil {
		return
	}
	g.levee.signal(syscall.SIGTERM)
	if code := g.levee.wait(); code != 0 {
		g.t.Errorf("exit code %d", code)
	}
	g.levee = nil
}

// newGuide is a page, with the server and the port that levee is to have in it; a
// certificate for the name is where the page wants it.
func newGuide(t *testing.T, page, server, actual, name string, ports ...string) *guide {
	t.Helper()
	need(t, "curl")
	need(t, "openssl")
	g := &guide{
		t: t, page: page, dir: t.TempDir(), here: map[string]string{server: actual, name: "localhost"},
		has: map[string]int{"console": 3, "yaml": 1},
	}
	free := freePorts(t, len(ports)+1)
	for i, port := range ports {
		g.here[port] = free[i]
	}
	g.here["127.0.0.1:9180"] = net.JoinHostPort("127.0.0.1", free[len(ports)])
	cert, _ := certificate(t, g.dir, "localhost")
	authority, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(g.dir, "ca.pem"), authority, 0o600); err != nil {
		t.Fatal(err)
	}
	return g
}

func TestGuideToPostgreSQL(t *testing.T) {
	t.Parallel()
	need(t, "psql")
	g := newGuide(t, "postgres.md", "10.0.0.7:5432", "", "db.example.com", "6432")
	c := newCluster(t)
	g.here["10.0.0.7:5432"] = c.start("ssl=on",
		"ssl_cert_file="+c.give("server.pem", filepath.Join(g.dir, "localhost.pem")),
		"ssl_key_file="+c.give("server-key.pem", filepath.Join(g.dir, "localhost-key.pem")))
	g.play()
}

func TestGuideToRedis(t *testing.T) {
	t.Parallel()
	need(t, "redis-cli")
	newGuide(t, "redis.md", "10.0.0.7:6379", redis(t), "redis.example.com", "6380").play()
}

func TestGuideToMQTT(t *testing.T) {
	t.Parallel()
	_, address := mqttBroker(t)
	newGuide(t, "mqtt.md", "10.0.0.7:1883", address, "mqtt.example.com", "1884", "8883").play()
}

func TestGuideToSSH(t *testing.T) {
	t.Parallel()
	s := ssh(t)
	g := newGuide(t, "ssh.md", "10.0.0.7:22", s.address, "bastion.example.com", "2222")
	g.here["/tmp/levee-guide.yaml"] = filepath.Join(g.dir, "copy.yaml")
	if err := os.Mkdir(filepath.Join(g.dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"ssh", "scp"} { // with a key and a list of known hosts that are not in anybody's home
		path, err := exec.LookPath(program)
		if err != nil {
			t.Skipf("skipped: %v", err)
		}
		script := fmt.Sprintf("#!/bin/sh\nexec %s -F none -i %s/client -o BatchMode=yes -o HostKeyAlias=the-server -o UserKnownHostsFile=%s/known \"$@\"\n", path, s.dir, s.dir)
		if err := os.WriteFile(filepath.Join(g.dir, "bin", program), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	g.play()
}
