package admin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"

	"github.com/levee-net/levee/internal/watch"
)

const (
	shortestToken = 16  // characters: of random ones, more than anybody can try
	longestToken  = 512 // as a header has it
)

// A Token is a secret that lets in whoever knows it. It stands in a file alone, and can be changed there.
type Token struct {
	// File is where it is. It must not be readable by every user.
	File string
	// Problem, if it is not nil, is told what is wrong with the file once it has been good: the token of before holds.
	Problem func(error)
	// Changed, if it is not nil, is told that another token holds.
	Changed func()

	sum atomic.Pointer[[sha256.Size]byte]
}

// Load reads the file. If that fails, the token of before holds.
func (t *Token) Load() error {
	text, err := ReadToken(t.File)
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(text))
	before := t.sum.Swap(&sum)
	if before != nil && *before != sum && t.Changed != nil {
		t.Changed()
	}
	return nil
}

// Watch reads the file again whenever it may have changed, until ctx ends; it returns ctx's error.
func (t *Token) Watch(ctx context.Context) error {
	told := ""
	look := func() error {
		err := t.Load()
		if err == nil {
			told = ""
		}
		return err
	}
	problem := func(err error) {
		if err.Error() != told && t.Problem != nil { // each once, until it is right again
			told = err.Error()
			t.Problem(err)
		}
	}
	return watch.Run(ctx, []string{t.File}, 0, problem, look)
}

// is compares in a time that says nothing about the token, not even how long it is.
func (t *Token) is(presented string) bool {
	sum, own := sha256.Sum256([]byte(presented)), t.sum.Load()
	return own != nil && subtle.ConstantTimeCompare(sum[:], own[:]) == 1
}

// ReadToken returns the token that a file has, if nobody but its owner and its group can read it.
func ReadToken(file string) (string, error) {
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", missing{file}
	case err != nil:
		return "", err
	}
	if readableByAll(info) {
		return "", fmt.Errorf("%s: can be read by every user (mode %04o), so that it keeps nothing secret; chmod 600 it", file, info.Mode().Perm())
	}
	content, err := watch.ReadFile(file, longestToken+2)
	if err != nil {
		return "", err
	}
	content = bytes.TrimSuffix(bytes.TrimSuffix(content, []byte("\n")), []byte("\r"))
	if err := wellFormed(content); err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	return string(content), nil
}

// A missing file is one that a token was to be in.
type missing struct{ file string }

func (m missing) Error() string { return m.file + ": there is no such file" }
func (missing) Unwrap() error   { return fs.ErrNotExist }

func wellFormed(token []byte) error {
	switch {
	case len(token) < shortestToken:
		return fmt.Errorf("a token has at least %d characters, this has %d; make one with: openssl rand -hex 32", shortestToken, len(token))
	case len(token) > longestToken:
		return fmt.Errorf("a token has at most %d characters", longestToken)
	}
	for _, c := range token {
		if c <= ' ' || c > '~' {
			return errors.New("a token is one line of printable ASCII without spaces; make one with: openssl rand -hex 32")
		}
	}
	return nil
}
