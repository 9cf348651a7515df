// Package leveetest is a network, its accidents and its certificates in
// memory, so that a test of a TCP server needs no port, no file and no sleep.
//
// A server gets a [Listener], its clients call [Listener.Dial]; what lies
// between behaves as Linux's TCP does, and everything in it that waits lets the
// virtual time of [testing/synctest] go on. This is a whole test: a server that
// hangs up on clients that say nothing for a minute.
//
//	func TestSilentClientIsDropped(t *testing.T) {
//		synctest.Test(t, func(t *testing.T) {
//			listener := leveetest.Listen()
//			defer listener.Close()
//			go serve(listener) // the server under test
//
//			client, err := listener.Dial(t.Context())
//			if err != nil {
//				t.Fatal(err)
//			}
//			defer client.Close()
//
//			start := time.Now()
//			_, err = client.Read(make([]byte, 1)) // a minute passes in no time
//			if err != io.EOF || time.Since(start) != time.Minute {
//				t.Errorf("Read: %v after %v, want EOF after 1m0s", err, time.Since(start))
//			}
//		})
//	}
//
// The other rooms are [Faulty] and [FaultyListener], which cut a stream into
// single bytes, stall it or reset it at a chosen byte; [NewCA], which issues
// certificates that are valid inside and outside a synctest bubble;
// [CheckLeaks], which fails a test that leaves a goroutine or an open file
// behind; and [Abuse], which attacks a server on a real socket and fails the test
// if its other clients notice.
//
// Inside a synctest bubble, make the listener or the pipe inside the same
// bubble: a goroutine outside of it must not wake one inside.
package leveetest
