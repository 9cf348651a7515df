package route_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
	"github.com/levee-net/levee/route"
)

// meeting is a handler that meets a server, and then passes on what that says and what the
// client does, to their ends.
func meeting(meet func(context.Context, *levee.Conn, *leveetest.Conn) error, far *leveetest.Conn, failed chan<- error) levee.Handler {
	return levee.HandlerFunc(func(ctx context.Context, c *levee.Conn) error {
		defer far.Close()
		err := meet(ctx, c, far)
		failed <- err
		if err != nil {
			return nil
		}
		done := make(chan struct{})
		go func() { // ends with far
			defer close(done)
			_, _ = io.Copy(c, far)
			_ = c.CloseWrite()
		}()
		_, _ = io.Copy(far, c)
		_ = far.CloseWrite()
		<-done
		return nil
	})
}

// met has a client meet a server that says so in pieces, and then nothing until it is asked.
// It returns what the client gets, to which the server's answer to the end belongs.
func met(t *testing.T, meet func(context.Context, *levee.Conn, *leveetest.Conn) error, greeting ...string) (got string, err error) {
	t.Helper()
	far, server := leveetest.Pipe()
	failed := make(chan error, 1)
	s := serve(t, &levee.Server{Handler: meeting(meet, far, failed)})
	c := s.dial(t)
	for _, piece := range greeting {
		io.WriteString(server, piece)
		synctest.Wait()
	}
	c.CloseWrite()
	go func() { // ends with far
		asked, _ := io.ReadAll(server)
		fmt.Fprintf(server, "answer to %q", asked)
		server.Close()
	}()
	said, _ := io.ReadAll(c)
	return string(said), <-failed
}

func meetSMTP(ctx context.Context, c *levee.Conn, far *leveetest.Conn) error {
	return route.MeetSMTP(ctx, c, far)
}

func meetIMAP(ctx context.Context, c *levee.Conn, far *leveetest.Conn) error {
	return route.MeetIMAP(ctx, c, far)
}

func TestAGreetingDoesNotReachTheClientWhoHasHadOne(t *testing.T) {
	for _, test := range []struct {
		meet     func(context.Context, *levee.Conn, *leveetest.Conn) error
		greeting string
		rest     string // what is behind it, and for the client
	}{
		{meetSMTP, "220 mx.test ESMTP\r\n", ""},
		{meetSMTP, "220\r\n", ""},
		{meetSMTP, "220-mx.test\r\n220-is busy\r\n220 today\r\n", ""},
		{meetSMTP, "220 mx.test ESMTP\r\n", "421 4.3.2 going down\r\n"},
		{meetIMAP, "* OK [CAPABILITY IMAP4rev1] ready\r\n", ""},
		{meetIMAP, "* ok ready\r\n", "* BYE going down\r\n"},
	} {
		synctest.Test(t, func(t *testing.T) {
			want := test.rest + `answer to ""`
			for cut := range len(test.greeting) {
				if got, err := met(t, test.meet, test.greeting[:cut], test.greeting[cut:]+test.rest); got != want || err != nil {
					t.Errorf("%q + %q: %q, %v, want %q", test.greeting[:cut], test.greeting[cut:], got, err, want)
				}
			}
			if got, err := met(t, test.meet, strings.Split(test.greeting+test.rest, "")...); got != want || err != nil {
				t.Errorf("%q byte by byte: %q, %v, want %q", test.greeting, got, err, want)
			}
		})
	}
}

func TestAServerThatDoesNotWelcomeIsPassedOnAsItsWords(t *testing.T) {
	for _, test := range []struct {
		meet     func(context.Context, *levee.Conn, *leveetest.Conn) error
		greeting string
		want     string
	}{
		{meetSMTP, "554-no\r\n554 service\r\n", "554-no\r\n554 service\r\n"},
		{meetSMTP, "421 4.3.2 going down\r\n", "421 4.3.2 going down\r\n"},
		{meetSMTP, "* OK ready\r\n", ""},
		{meetSMTP, "220-a\r\n250 b\r\n", ""},
		{meetSMTP, "22\r\n", ""},
		{meetSMTP, "220_\r\n", ""},
		{meetSMTP, "220-" + strings.Repeat("x", 5000), ""},
		{meetSMTP, "SSH-2.0-x\r\n", ""},
		{meetIMAP, "* BYE going down\r\n", "* BYE going down\r\n"},
		{meetIMAP, "* PREAUTH welcome\r\n", "* PREAUTH welcome\r\n"},
		{meetIMAP, "+OK POP3\r\n", ""},
		{meetIMAP, "* OK " + strings.Repeat("x", 5000), ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			if got, err := met(t, test.meet, test.greeting); got != test.want || err == nil {
				t.Errorf("%.50q: %q, %v, want %q", test.greeting, got, err, test.want)
			}
		})
	}
}

func TestAServerThatDoesNotGreetIsNotAwaitedForLonger(t *testing.T) {
	late := errors.New("late")
	for _, meet := range []func(context.Context, *levee.Conn, *leveetest.Conn) error{
		meetSMTP, meetIMAP,
		func(ctx context.Context, c *levee.Conn, far *leveetest.Conn) error {
			return route.MeetMySQL(ctx, c, far)
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			_, err := met(t, func(ctx context.Context, c *levee.Conn, far *leveetest.Conn) error {
				ctx, cancel := context.WithTimeoutCause(ctx, 3*time.Second, late)
				defer cancel()
				return meet(ctx, c, far)
			})
			if err != late || time.Since(began) != 3*time.Second {
				t.Errorf("%v after %v", err, time.Since(began))
			}
		})
		synctest.Test(t, func(t *testing.T) {
			far, server := leveetest.Pipe()
			server.Close()
			failed := make(chan error, 1)
			s := serve(t, &levee.Server{Handler: meeting(meet, far, failed)})
			s.dial(t)
			if err := <-failed; !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
				t.Errorf("of a server that closes: %v", err)
			}
		})
	}
}
