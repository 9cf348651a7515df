//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// flooded are the servers that are attacked: as they come, with nothing set but where
// they listen and what is behind them.
var flooded = suite{
	key:   "flood",
	works: []work{{key: "flood", size: 64, depth: 1, backend: "echo"}},
	peers: []peer{
		{key: "gonet", name: "Go net", build: buildGo("./peers/gonet")},
		{key: "levee", name: "levee", build: buildLevee, command: "$program serve -c $config", config: leveeEcho, metrics: true},
		{key: "nginx", name: "nginx → echo", build: findCommand("nginx"), command: "$program -c $config -e stderr", config: nginxStock, inherits: true},
		{key: "haproxy", name: "HAProxy → echo", build: findCommand("haproxy"), command: "$program -db -f $config", config: haproxyStock, inherits: true},
		{key: "proxy", name: "levee → echo", build: buildLevee, command: "$program proxy --listen 127.0.0.1:0 --admin 127.0.0.1:0 --tls off --to $backend", metrics: true},
	},
	backends: []peer{{key: "echo", name: "the echo behind the proxies", build: buildC("echo")}},
}

// nginxStock is Debian's nginx.conf, as far as it is about TCP.
const nginxStock = `daemon off;
worker_processes auto;
pid $program.pid;
error_log stderr crit;
include /etc/nginx/modules-enabled/*mod-stream.conf;
events {
	worker_connections 768;
}
stream {
	server {
		listen $listen;
		proxy_pass $backend;
	}
}
`

// haproxyStock is Debian's haproxy.cfg, with mode tcp.
const haproxyStock = `defaults
	mode tcp
	timeout connect 5000
	timeout client  50000
	timeout server  50000
frontend flood
	bind fd@3
` + haproxyBackend

// A floodResult is what `levee flood --json` says, as far as it is of use here.
type floodResult struct {
	Attacks []attackResult `json:"attacks"`
	Remarks []string       `json:"remarks"`
}

type attackResult struct {
	Attack  string `json:"attack"`
	Skipped string `json:"skipped"`
	During  struct {
		OK  float64 `json:"ok"`
		All struct {
			P99 float64 `json:"p99_us"`
		} `json:"all"`
	} `json:"during"`
	Complaints []string `json:"complaints"`
}

// flood has the attacks made on each server, one after the other, and prints what its
// well-behaved client felt. The attackers come from the load's core.
func (b *bench) flood(ctx context.Context) error {
	s, err := choose([]suite{flooded}, "", b.peers)
	if err != nil {
		return err
	}
	if err := s[0].build(ctx); err != nil {
		return err
	}
	weapon, err := peer{name: "the attackers", build: buildLevee}.make(ctx, "flood-attackers")
	if err != nil {
		return err
	}
	fmt.Printf("\n%s\nserver on core %d, attackers and what is behind a proxy on core %d; attacks of %s\n", b.machine, b.cores.server, b.cores.load, b.duration)
	results := map[string]floodResult{}
	for _, it := range s[0].servers {
		if results[it.key], err = b.floodOne(ctx, s[0], it, weapon.program); err != nil {
			return fmt.Errorf("%s: %w", it.name, err)
		}
	}
	if err := saveFlood(filepath.Join(b.out, "flood.json"), b.machine, results); err != nil {
		return err
	}
	return printFlood(os.Stdout, s[0].servers, results)
}

func (b *bench) floodOne(ctx context.Context, s *suite, it server, weapon string) (result floodResult, err error) {
	p, err := b.serve(ctx, s, it, s.works[0])
	if err != nil {
		return result, err
	}
	defer p.stop()
	fmt.Printf("%s ...\n", it.name)
	arguments := []string{"flood", "--json", "--all", "--target", p.address, "--duration", b.duration.String()}
	if b.only != "" {
		arguments[2] = "--attack=" + b.only
	}
	if where, ok := strings.CutPrefix(p.scrape, "http://"); ok {
		arguments = append(arguments, "--admin", strings.TrimSuffix(where, "/metrics"))
	}
	flood := exec.CommandContext(ctx, weapon, arguments...)
	flood.Stderr = os.Stderr
	out, err := flood.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 1 { // it did not hold
		err = nil
	}
	return result, errors.Join(err, json.Unmarshal(out, &result))
}

func saveFlood(file string, m machine, results map[string]floodResult) error {
	text, err := json.MarshalIndent(struct {
		Machine machine                `json:"machine"`
		Servers map[string]floodResult `json:"servers"`
	}{m, results}, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}

// printFlood prints a table in Markdown: a line for each attack that is one on any of
// the servers, with the p99 of what the client did, in bold where the server did
// not hold.
func printFlood(w io.Writer, servers []server, results map[string]floodResult) error {
	heads := []string{"attack"}
	for _, it := range servers {
		heads = append(heads, it.name)
	}
	rows := [][]string{heads, slices.Repeat([]string{"---"}, len(heads))}
	held := []string{"held"}
	for i, a := range results[servers[0].key].Attacks {
		row := []string{a.Attack}
		for _, it := range servers {
			row = append(row, results[it.key].Attacks[i].String())
		}
		if slices.ContainsFunc(row[1:], func(cell string) bool { return cell != "" }) {
			rows = append(rows, row)
		}
	}
	for _, it := range servers {
		held = append(held, results[it.key].String())
	}
	for _, row := range append(rows, held) {
		if _, err := fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | ")); err != nil {
			return err
		}
	}
	return nil
}

// String says how many attacks the server has held against, of those that were any.
func (r floodResult) String() string {
	held, made := 0, 0
	for _, a := range r.Attacks {
		if a.Skipped == "" {
			made++
		}
		if a.Skipped == "" && len(a.Complaints) == 0 {
			held++
		}
	}
	return fmt.Sprintf("%d of %d", held, made)
}

func (a attackResult) String() string {
	if a.Skipped != "" {
		return ""
	}
	p99 := time.Duration(a.During.All.P99) * time.Microsecond
	text := fmt.Sprintf("%.1f ms", p99.Seconds()*1e3)
	if a.During.OK < 1 {
		text = fmt.Sprintf("%.1f %% ok, ", 100*a.During.OK) + text
	}
	if len(a.Complaints) > 0 {
		return "**" + text + "**"
	}
	return text
}
