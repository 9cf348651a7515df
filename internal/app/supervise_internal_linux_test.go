package app

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestASupervisorListensWhereNoOtherUserCanFillItsQueue(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	notes, tidy, err := listenForNotes()
	if err != nil {
		t.Fatal(err)
	}
	path := notes.LocalAddr().String()
	folder, err := os.Stat(filepath.Dir(path))
	if err != nil || folder.Mode().Perm() != 0o700 {
		t.Errorf("it listens at %s: %v, %v", path, folder.Mode(), err)
	}
	_ = notes.Close()
	tidy()
	if _, err := os.Stat(filepath.Dir(path)); !os.IsNotExist(err) {
		t.Errorf("its folder is left behind: %v", err)
	}
}

func TestASupervisorListensEvenIfThereIsNoFolderToBeHad(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "none"))
	notes, tidy, err := listenForNotes()
	if err != nil {
		t.Fatal(err)
	}
	defer tidy()
	defer notes.Close()
	if at := notes.LocalAddr().String(); !strings.HasPrefix(at, "@") {
		t.Errorf("it listens at %s", at)
	}
}
