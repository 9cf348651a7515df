package probe

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Redis sends PING, after AUTH if there is a password, to Redis, Valkey or whatever
// speaks RESP, and wants PONG. Without a password, a server that asks for one (NOAUTH)
// is well too. One that loads its data (LOADING), is a replica that has lost its
// master and says so (MASTERDOWN), is busy in a script (BUSY), is full or refuses the
// password is not, and the error has the server's own words.
func Redis(password string) Probe {
	ask := "*1\r\n$4\r\nPING\r\n"
	if password != "" {
		ask = fmt.Sprintf("*2\r\n$4\r\nAUTH\r\n$%d\r\n%s\r\n", len(password), password) + ask
	}
	return converse(maxAnswer, func(w io.Writer, r *bufio.Reader) error {
		if err := write(w, []byte(ask)); err != nil {
			return err
		}
		login := ""
		if password != "" {
			// Its answer is only words for what PING is answered: a server that has no password refuses every one.
			line, err := readRedis(r)
			if err != nil {
				return err
			}
			login = line
		}
		pong, err := readRedis(r)
		switch {
		case err != nil:
			return err
		case pong == "+PONG", strings.HasPrefix(pong, "-NOAUTH") && password == "":
			return nil
		case strings.HasPrefix(pong, "-NOAUTH") && login != "+OK":
			pong = login
		}
		return fmt.Errorf("answered %s", words([]byte(strings.TrimPrefix(pong, "-"))))
	})
}

var errNotRedis = errors.New("the answer is not Redis's")

// readRedis reads a simple string or an error: a line, of at most 4 KiB.
func readRedis(r *bufio.Reader) (string, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		if errors.Is(err, bufio.ErrBufferFull) {
			return "", errNotRedis
		}
		return "", err
	}
	text, ended := strings.CutSuffix(string(line), "\r\n")
	if !ended || text == "" || text[0] != '+' && text[0] != '-' {
		return "", errNotRedis
	}
	return text, nil
}
