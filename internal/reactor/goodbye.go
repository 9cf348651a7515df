//go:build linux

package reactor

import "golang.org/x/sys/unix"

// sayGoodbye sees to it that the peer gets to read the last bytes it was sent. The
// kernel answers a close with unread bytes by a reset, which can overtake them
// (RFC 1122, section 4.2.2.13): so whatever is still coming is read and dropped,
// for a moment, and only then the connection closed.
func (l *loop) sayGoodbye(c *Conn, cause Cause, err error) bool {
	// First, so that what comes after the look below cannot turn it into a reset.
	if c.is(ended) || unix.Shutdown(int(c.fd), unix.SHUT_WR) != nil {
		return l.close(c, cause, err)
	}
	n, unread := readSocket(int(c.fd), l.in)
	if unread == unix.EAGAIN && unsent(int(c.fd)) {
		unread = nil // what comes while the kernel still sends would make it drop the rest
	}
	if unread != nil {
		return l.close(c, cause, err) // nothing unread, nothing unsent: a plain close harms nobody
	}
	c.read.Add(int64(n))
	if l.hurry.Goodbye {
		return l.close(c, cause, err)
	}
	c.rest = &rest{since: l.now, cause: cause, refusal: err, dropped: n}
	c.weigh()
	c.clear(refused)
	c.set(parting | readable)
	l.wheel.put(c, l.now+int64(LingerTime))
	return l.drop(c)
}

// drop goes on with the goodbye, and ends it when the peer has closed its side or
// has had its share of time or bytes.
func (l *loop) drop(c *Conn) bool {
	for r := c.rest; c.is(readable) && r.dropped < LingerBytes; {
		n, err := readSocket(int(c.fd), l.in)
		if err == unix.EAGAIN {
			c.clear(readable)
			break
		}
		if err != nil {
			return l.close(c, r.cause, r.refusal)
		}
		r.dropped += n
		c.read.Add(int64(n))
	}
	if c.rest.dropped >= LingerBytes || l.now-c.rest.since >= int64(LingerTime) {
		return l.close(c, c.rest.cause, c.rest.refusal)
	}
	l.wheel.put(c, c.rest.since+int64(LingerTime))
	return true
}
