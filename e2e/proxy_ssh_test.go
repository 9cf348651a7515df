package e2e

import (
	"bufio"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
)

// An sshServer lets in whoever has a key of the test's own.
type sshServer struct {
	address string
	dir     string // the client's key, and whom it knows
}

// ssh starts an SSH server.
func ssh(t *testing.T) sshServer {
	t.Helper()
	need(t, "ssh-keygen")
	const sshd = "/usr/sbin/sshd" // which insists on its whole path
	need(t, sshd)
	dir := t.TempDir()
	if os.Getuid() == 0 { // where its half without rights looks out from; systemd makes it otherwise
		const empty = "/run/sshd"
		if os.Mkdir(empty, 0o755) == nil {
			t.Cleanup(func() { os.Remove(empty) })
		}
	}
	port := freePorts(t, 1)[0]
	for _, key := range []string{"host", "client"} {
		run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key))
	}
	config := write(t, "sshd_config", strings.Join([]string{
		"ListenAddress 127.0.0.1:" + port,
		"HostKey " + filepath.Join(dir, "host"),
		"AuthorizedKeysFile " + filepath.Join(dir, "client.pub"),
		"StrictModes no", // the folder for temporary files is everybody's
		"PidFile none",
		"PasswordAuthentication no",
		"KbdInteractiveAuthentication no",
		"Subsystem sftp internal-sftp",
		"",
	}, "\n"))
	listening(t, port, exec.Command(sshd, "-D", "-e", "-f", config))
	host, err := os.ReadFile(filepath.Join(dir, "host.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "known"), append([]byte("the-server "), host...), 0o600); err != nil {
		t.Fatal(err)
	}
	return sshServer{"127.0.0.1:" + port, dir}
}

// options are a client's, for ssh and scp.
func (s sshServer) options(t *testing.T, address string) []string {
	t.Helper()
	return []string{
		"-F", "none",
		"-i", filepath.Join(s.dir, "client"),
		"-o", "BatchMode=yes",
		"-o", "HostKeyAlias=the-server",
		"-o", "UserKnownHostsFile=" + filepath.Join(s.dir, "known"),
		"-o", "Port=" + portOf(t, address),
	}
}

func TestSSHIsTheSameThroughIt(t *testing.T) {
	t.Parallel()
	s := ssh(t)
	p := before(t, s.address)
	options := s.options(t, p.address())
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	there := me.Username + "@127.0.0.1"

	t.Run("the server speaks first", func(t *testing.T) {
		line, err := bufio.NewReader(dial(t, p.address())).ReadString('\n')
		if !strings.HasPrefix(line, "SSH-2.0-OpenSSH") || err != nil {
			t.Errorf("%q, %v", line, err)
		}
	})

	t.Run("a command", func(t *testing.T) {
		out, err := client(t, "some input", "ssh", append(options, there, "tr a-z A-Z; exit 7")...)
		if out != "SOME INPUT" || err == nil || !strings.Contains(err.Error(), "exit status 7") {
			t.Errorf("%q, %v", out, err)
		}
	})

	t.Run("50 MB, there and back", func(t *testing.T) {
		file, dir := randomFile(t, 50<<20), t.TempDir()
		want := digest(t, file, exec.Command("cat"))
		run(t, "scp", append(options, file, there+":"+dir+"/there")...)
		run(t, "scp", append(options, there+":"+dir+"/there", dir+"/back")...)
		for _, name := range []string{"there", "back"} {
			if got := digest(t, filepath.Join(dir, name), exec.Command("cat")); got != want {
				t.Errorf("%s: %s, want %s", name, got, want)
			}
		}
	})
}
