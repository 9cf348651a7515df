package watch_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/levee-net/levee/internal/watch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const never = -time.Second // to look without being told

// start watches files until the test ends, and returns where each look is announced.
func start(t *testing.T, interval time.Duration, problem func(error), look func() error, files ...string) <-chan struct{} {
	t.Helper()
	looked := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { // until the clean-up
		ended <- watch.Run(ctx, files, interval, problem, func() error {
			defer func() { looked <- struct{}{} }()
			return look()
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
	return looked
}

func await(t *testing.T, what <-chan struct{}) {
	t.Helper()
	select {
	case <-what:
	case <-time.After(15 * time.Second):
		t.Fatal("it did not look")
	}
}

func fine() error { return nil }

func TestAChangeInAnyOfTheFoldersIsNoticed(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	looked := start(t, never, nil, fine, filepath.Join(a, "1"), filepath.Join(b, "2"), filepath.Join(b, "3"))
	await(t, looked)
	for _, path := range []string{filepath.Join(a, "1"), filepath.Join(b, "3"), filepath.Join(a, "beside it")} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		await(t, looked)
	}
}

func TestItLooksAgainWithoutBeingTold(t *testing.T) {
	looked := start(t, time.Millisecond, nil, fine, filepath.Join(t.TempDir(), "none"))
	for range 3 {
		await(t, looked)
	}
}

func TestAFolderThatIsGoneIsOneProblem(t *testing.T) {
	problems := make(chan error, 100)
	path := filepath.Join(t.TempDir(), "gone", "file")
	looked := start(t, never, func(err error) { problems <- err }, func() error { return errors.New("no file") }, path)
	await(t, looked)
	if err := <-problems; err.Error() != "no file" {
		t.Errorf("told %v", err)
	}
	start(t, never, func(err error) { problems <- err }, fine, path)
	if err := <-problems; !strings.Contains(err.Error(), "watch "+filepath.Dir(path)) {
		t.Errorf("told %v", err)
	}
}

func TestReadFileReadsFilesAlone(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "file")
	if err := os.WriteFile(path, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	if content, err := watch.ReadFile(path, 5); string(content) != "12345" || err != nil {
		t.Errorf("%q, %v", content, err)
	}
	for _, c := range []struct {
		path string
		max  int64
		want string
	}{
		{path, 4, "larger than 4 bytes"},
		{folder, 5, "not a file"},
		{path + "x", 5, "no such file"},
	} {
		if _, err := watch.ReadFile(c.path, c.max); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.path) {
			t.Errorf("%s: %v", c.path, err)
		}
	}
}
