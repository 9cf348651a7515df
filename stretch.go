package levee

// A goroutine's stack begins with 2 KiB, and is copied each time that it doubles: the deeper it is by then, the
// more that costs. So before what is known to go deep it is made to grow at once to what that takes.

const (
	dialStack      = 5 << 10 // bytes, which makes it 8 KiB
	handshakeStack = 9 << 10 // 16 KiB
)

//go:noinline
func stretchToDial(i int) byte {
	var room [dialStack]byte
	return room[i]
}

//go:noinline
func stretchToHandshake(i int) byte {
	var room [handshakeStack]byte
	return room[i]
}
