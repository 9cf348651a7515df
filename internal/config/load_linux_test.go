package config

import (
	"syscall"
	"testing"
)

// A pipe blocks whoever opens it until someone writes, a device may never end: Load opens neither.
func TestLoadRefusesPipesAndDevices(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := syscall.Mkfifo("pipe", 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"pipe", "/dev/zero", "/dev/urandom", "/proc/self/fd"} {
		want := path + ": is not a regular file"
		if path == "/proc/self/fd" {
			want = path + ": is a folder; name the file in it, such as " + path + "/levee.yaml"
		}
		if _, err := Load(path); err == nil || err.Error() != want {
			t.Errorf("Load(%q): %v, want %s", path, err, want)
		}
	}
}

// Its size is said to be 0, and reading it fails.
func TestLoadReportsAFileThatCannotBeRead(t *testing.T) {
	_, err := Load("/proc/self/mem")
	if want := "/proc/self/mem: input/output error"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
