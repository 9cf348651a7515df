package discover

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/levee-net/levee/upstream"
)

const (
	maxWeight = 65535 // SRV's
	maxTier   = 255
	maxName   = 255 // bytes: that of a name in DNS
)

// beginsJSON tells a list from an IPv6 address, which begins with [ too.
var beginsJSON = regexp.MustCompile(`^\s*\[\s*["{\]]`)

// parseServers reads what a file of servers has in it. If there is a mistake, line is
// where it is.
func parseServers(text []byte) (servers []upstream.Server, line int, err error) {
	l := list{lines: make(map[string]int)}
	if beginsJSON.Match(text) {
		line, err = l.parseJSON(text)
	} else {
		line, err = l.parseLines(string(text))
	}
	return l.servers, line, err
}

// A list is the servers that have been read.
type list struct {
	servers []upstream.Server
	lines   map[string]int // in which they are, by their names
}

func (l *list) parseLines(text string) (line int, err error) {
	for words := range strings.Lines(text) {
		line++
		server, err := parseLine(words)
		if err != nil {
			return line, err
		}
		if len(server.Addresses) == 0 {
			continue
		}
		if err := l.add(server, line); err != nil {
			return line, err
		}
	}
	if len(l.servers) == 0 {
		return max(1, line), errors.New("no servers; if that is meant, write []")
	}
	return 0, nil
}

// parseLine returns a server without addresses if the line is empty.
func parseLine(line string) (server upstream.Server, err error) {
	given := make(map[string]bool)
	for i, word := range strings.Fields(line) {
		if word[0] == '#' {
			break
		}
		if i == 0 {
			server.Addresses = []string{word}
			continue
		}
		key, value, _ := strings.Cut(word, "=")
		if given[key] {
			return server, fmt.Errorf("a second %s", key)
		}
		given[key] = true
		switch key {
		case "weight":
			server.Weight, err = number(key, value, 1, maxWeight)
		case "tier":
			server.Tier, err = number(key, value, 0, maxTier)
		case "name":
			server.Name, err = value, checkServerName(value)
		default:
			err = fmt.Errorf("%q is none of weight=, tier= and name=", word)
		}
		if err != nil {
			return server, err
		}
	}
	return server, nil
}

func number(what, digits string, least, most int) (int, error) {
	n, err := strconv.ParseUint(digits, 10, 31)
	if err != nil || int(n) < least || int(n) > most {
		return 0, fmt.Errorf("%s %.20q is no number from %d to %d", what, digits, least, most)
	}
	return int(n), nil
}

func (l *list) parseJSON(text []byte) (line int, err error) {
	lineOf := func(offset int64) int { return 1 + bytes.Count(text[:offset], []byte("\n")) }
	var all []json.RawMessage
	if err := json.Unmarshal(text, &all); err != nil {
		if wrong, ok := errors.AsType[*json.SyntaxError](err); ok {
			return lineOf(wrong.Offset), err
		}
		return 1, err
	}
	elements := json.NewDecoder(bytes.NewReader(text)) // the same once more, to know where each begins
	_, _ = elements.Token()
	for elements.More() {
		var element json.RawMessage
		if err := elements.Decode(&element); err != nil {
			return lineOf(elements.InputOffset()), err
		}
		line := lineOf(elements.InputOffset() - int64(len(element)))
		server, err := parseElement(element)
		if err != nil {
			return line, err
		}
		if err := l.add(server, line); err != nil {
			return line, err
		}
	}
	return 0, nil
}

func parseElement(element json.RawMessage) (server upstream.Server, err error) {
	if element[0] == '"' {
		var address string
		err = json.Unmarshal(element, &address)
		return upstream.Server{Addresses: []string{address}}, err
	}
	var given struct {
		Name      string   `json:"name"`
		Addresses []string `json:"addresses"`
		Weight    *int     `json:"weight"`
		Tier      int      `json:"tier"`
	}
	decoder := json.NewDecoder(bytes.NewReader(element))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&given); err != nil {
		if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return server, fmt.Errorf("%s is not what belongs %s", wrong.Value, where(wrong.Field))
		}
		return server, errors.New(strings.TrimPrefix(err.Error(), "json: "))
	}
	server = upstream.Server{Name: given.Name, Addresses: given.Addresses, Tier: given.Tier}
	if given.Weight != nil {
		server.Weight = *given.Weight
		if _, err := number("weight", strconv.Itoa(server.Weight), 1, maxWeight); err != nil {
			return server, err
		}
	}
	if _, err := number("tier", strconv.Itoa(server.Tier), 0, maxTier); err != nil {
		return server, err
	}
	return server, nil
}

func where(field string) string {
	if field == "" {
		return "into the list"
	}
	return "into " + field
}

// add adds a server if it can be one and there is no other of its name.
func (l *list) add(server upstream.Server, line int) error {
	switch {
	case len(server.Addresses) == 0:
		server.Addresses = []string{server.Name}
	case server.Name == "":
		server.Name = server.Addresses[0]
	}
	for _, address := range server.Addresses {
		if err := checkAddress(address); err != nil {
			return err
		}
	}
	if err := checkServerName(server.Name); err != nil {
		return err
	}
	if before := l.lines[server.Name]; before > 0 {
		return fmt.Errorf("line %d has a server named %s already", before, server.Name)
	}
	l.lines[server.Name] = line
	l.servers = append(l.servers, server)
	return nil
}

// checkServerName keeps out of names what would spoil a log line or a metric's label.
func checkServerName(name string) error {
	if name == "" || len(name) > maxName || strings.ContainsFunc(name, odd) {
		return fmt.Errorf("%.300q is no name for a server", name)
	}
	return nil
}

func odd(r rune) bool { return !unicode.IsPrint(r) || r == ' ' || r == unicode.ReplacementChar }

func checkAddress(address string) error {
	if path, ok := strings.CutPrefix(address, "unix:"); ok && path != "" && !strings.ContainsFunc(path, odd) {
		return nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" || strings.ContainsFunc(host, odd) {
		return fmt.Errorf("%.300q is no address like 10.0.0.7:5432, [2001:db8::7]:5432, db:5432 or unix:/path", address)
	}
	_, err = number("port", port, 1, 65535)
	return err
}
