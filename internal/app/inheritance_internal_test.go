package app

import "testing"

type heir interface {
	Save() ([]byte, error)
	Restore([]byte) error
}

// inherits has one take over what the same part of the process before knows.
func inherits(t *testing.T, one, before heir) {
	t.Helper()
	b, err := before.Save()
	if err != nil {
		t.Fatal(err)
	}
	if err := one.Restore(b); err != nil {
		t.Fatal(err)
	}
}
