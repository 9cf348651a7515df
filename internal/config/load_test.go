package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLoadResolvesPathsAgainstTheFilesFolder(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "levee.yaml")
	write(t, path, frame(loopback+"\ntls: {certificates: [{cert: tls/a.pem, key: /etc/a-key.pem}]}"))
	cfg, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	got := cfg.Listeners[0].TLS.Certificates[0]
	if got.Cert != filepath.Join(folder, "tls/a.pem") || got.Key != "/etc/a-key.pem" {
		t.Errorf("got %s and %s", got.Cert, got.Key)
	}
	if want := path + ":5:24"; got.Pos.String() != want {
		t.Errorf("position %s, want %s", got.Pos, want)
	}
}

func TestLoadResolvesAnUpstreamsPathsAgainstTheFilesFolder(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "levee.yaml")
	write(t, path, behind("tls: {mode: on, ca: tls/ca.pem, certificate: a.pem, key: /etc/a-key.pem}"))
	cfg, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	got := cfg.Upstreams[0].TLS
	if got.CA != filepath.Join(folder, "tls/ca.pem") || got.Certificate != filepath.Join(folder, "a.pem") || got.Key != "/etc/a-key.pem" {
		t.Errorf("got %s, %s and %s", got.CA, got.Certificate, got.Key)
	}
	write(t, path, behind(""))
	if cfg, err = Load(path); err != nil {
		t.Fatal(err)
	}
	if got := cfg.Upstreams[0].TLS; got.CA+got.Certificate+got.Key != "" {
		t.Errorf("paths out of nothing: %+v", got)
	}
}

func TestLoadResolvesPathsOfARelativeFile(t *testing.T) {
	t.Chdir(t.TempDir())
	write(t, "levee.yaml", frame(loopback+"\ntls: {certificates: [{cert: a.pem, key: b.pem}]}"))
	cfg, err := Load("levee.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if got := cfg.Listeners[0].TLS.Certificates[0].Cert; !filepath.IsAbs(got) {
		t.Errorf("%s would change its meaning with the process's folder", got)
	}
}

func TestLoadReportsProblemsUnderTheFilesName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.yaml")
	write(t, path, "version: 2\n")
	_, err := Load(path)
	var problems *Problems
	if !errors.As(err, &problems) || !strings.HasPrefix(err.Error(), path+":1:1: ") {
		t.Errorf("got %v", err)
	}
}

func TestLoadRefusesWhatIsNotAFile(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.Mkdir("folder", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", "dangling"); err != nil {
		t.Fatal(err)
	}
	large, err := os.Create("large")
	if err != nil {
		t.Fatal(err)
	}
	defer large.Close()
	if err := large.Truncate(100 << 20); err != nil { // sparse
		t.Fatal(err)
	}
	write(t, "file", "")
	for _, c := range []struct {
		path, want string
		is         error
	}{
		{"missing", "missing: no such file or directory", fs.ErrNotExist},
		{"dangling", "dangling: no such file or directory", fs.ErrNotExist},
		{"file/levee.yaml", "file/levee.yaml: not a directory", nil},
		{"folder", "folder: is a folder; name the file in it, such as folder/levee.yaml", nil},
		{"large", "large: has 104857600 bytes; a configuration has at most 1048576", nil},
		{"/dev/null", "/dev/null: is not a regular file", nil},
		{"", ": no such file or directory", fs.ErrNotExist},
	} {
		_, err := Load(c.path)
		if err == nil || err.Error() != c.want {
			t.Errorf("Load(%q): %v, want %s", c.path, err, c.want)
		}
		if c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("Load(%q): %v does not match %v", c.path, err, c.is)
		}
	}
}

func TestLoadSaysThatAFileMayNotBeRead(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may read everything")
	}
	path := filepath.Join(t.TempDir(), "secret.yaml")
	write(t, path, frame(loopback))
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	_, err := Load(path)
	if !errors.Is(err, fs.ErrPermission) || err.Error() != path+": permission denied" {
		t.Errorf("got %v", err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
