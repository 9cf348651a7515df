// Package saved is the form in which a process leaves to the next one what it knows. Its
// secret is how the two understand each other when they are not of the same version, and what is
// believed of bytes from elsewhere: nothing but that they are not too many.
//
//	b, err := saved.Write(1, state)
//	…
//	state, age, err := saved.Read[state](b, 1, 1<<20)
//
// Fields that a reader does not know are ignored, and those that are missing are zero: so fields may
// come and go. What older readers would get wrong is a new version, which they refuse.
package saved

import (
	"encoding/json"
	"fmt"
	"time"
)

type envelope[T any] struct {
	Version int   `json:"version"`
	At      int64 `json:"at"` // when it was written, in nanoseconds since 1970: no other clock is another process's
	State   T     `json:"state"`
}

// Write returns state in the form in which Read reads it.
func Write[T any](version int, state T) ([]byte, error) {
	return json.Marshal(envelope[T]{version, time.Now().UnixNano(), state})
}

// Read returns what Write was given, and how long ago that was, which is never negative. It reads versions from
// 1 to the given one, and up to most bytes. Of no bytes at all it returns a zero state.
func Read[T any](b []byte, version, most int) (state T, age time.Duration, err error) {
	if len(b) == 0 {
		return state, 0, nil
	}
	if len(b) > most {
		return state, 0, fmt.Errorf("%d bytes of saved state, where %d are the most", len(b), most)
	}
	var of struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &of); err != nil {
		return state, 0, fmt.Errorf("saved state: %w", err)
	}
	if of.Version < 1 || of.Version > version {
		return state, 0, fmt.Errorf("saved state is of version %d, and versions up to %d are understood", of.Version, version)
	}
	var all envelope[T]
	if err := json.Unmarshal(b, &all); err != nil {
		return state, 0, fmt.Errorf("saved state: %w", err)
	}
	return all.State, max(0, time.Since(time.Unix(0, all.At))), nil
}

// Counts makes of what was read what counts can be: not negative, and far from an overflow.
func Counts(read ...*int64) {
	for _, n := range read {
		*n = min(max(*n, 0), mostCounted)
	}
}

const mostCounted = 1 << 60
