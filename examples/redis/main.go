// Command redis is a small server of the Redis protocol, PING, GET, SET and DEL, on event loops.
//
//	go run ./examples/redis
//	redis-cli -p 7000 set greeting hello
//	redis-benchmark -p 7000 -t ping,set,get -n 100000 -q
package main

import (
	"bytes"
	"context"
	"log"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/frame"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal does not wait for the connections
	if err := newServer().ListenAndServe(ctx, "127.0.0.1:7000"); err != nil {
		log.Fatal(err)
	}
}

func newServer() *levee.Server {
	s := &store{values: make(map[string][]byte)}
	// Stateless, so that connections could move to another process: see examples/upgrade.
	return &levee.Server{Handler: frame.Stateless(frame.Handler(commands{}, s.answer))}
}

// A store holds at most mostKeys values, or strangers could have it grow without end.
type store struct {
	mu     sync.RWMutex
	values map[string][]byte
}

const mostKeys = 100_000

// answer is called for many connections at once, and for each in the order of its commands.
func (s *store) answer(w *frame.Writer, command []byte) error {
	var args [][]byte
	if _, err := parse(command, func(arg []byte) { args = append(args, arg) }); err != nil {
		return err
	}
	if len(args) == 0 {
		return nil // an empty line
	}
	switch name := strings.ToUpper(string(args[0])); {
	case name == "PING" && len(args) == 1:
		w.WriteRaw([]byte("+PONG\r\n"))
	case name == "PING" && len(args) == 2:
		writeBulk(w, args[1])
	case name == "GET" && len(args) == 2:
		s.mu.RLock()
		value, ok := s.values[string(args[1])]
		s.mu.RUnlock() // a value is never changed, only replaced
		if !ok {
			w.WriteRaw([]byte("$-1\r\n"))
			return nil
		}
		writeBulk(w, value)
	case name == "SET" && len(args) == 3:
		w.WriteRaw(s.set(string(args[1]), bytes.Clone(args[2]))) // the command is ours only until we return
	case name == "DEL" && len(args) == 2:
		s.mu.Lock()
		_, ok := s.values[string(args[1])]
		delete(s.values, string(args[1]))
		s.mu.Unlock()
		if ok {
			w.WriteRaw([]byte(":1\r\n"))
		} else {
			w.WriteRaw([]byte(":0\r\n"))
		}
	case name == "QUIT":
		w.WriteRaw([]byte("+OK\r\n"))
		return frame.ErrClose
	default:
		w.WriteRaw([]byte("-ERR unknown command, or not its number of arguments\r\n"))
	}
	return nil
}

func (s *store) set(key string, value []byte) (reply []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.values[key]; !there && len(s.values) >= mostKeys {
		return []byte("-OOM no room for another key\r\n")
	}
	s.values[key] = value
	return []byte("+OK\r\n")
}

func writeBulk(w *frame.Writer, value []byte) {
	b := strconv.AppendInt([]byte{'$'}, int64(len(value)), 10)
	w.WriteRaw(append(b, '\r', '\n'))
	w.WriteRaw(value)
	w.WriteRaw([]byte("\r\n"))
}
