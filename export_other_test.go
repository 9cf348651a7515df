//go:build !linux

package levee

// AcceptedBare is always false: there are no event loops here.
func AcceptedBare(*Conn) bool { return false }
