//go:build !linux

package levee

// AcceptedBare is always false: there are no event loops here.
func AcceptedBare(*Conn) bool { return false }

// IsPaused is always false: there are no event loops here.
func IsPaused(*Conn) bool { return false }
