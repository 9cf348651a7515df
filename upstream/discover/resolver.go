package discover

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// A Resolver asks DNS servers and heeds how long their answers are good. The zero
// Resolver does as the machine is told by resolv.conf(5) and hosts(5), which it reads
// anew for each question, so that changing them takes effect. It may be used by many
// sources at once.
//
// Of resolv.conf it heeds up to three nameservers in order, domain or search, and the
// options ndots, timeout (up to 30 s) and attempts (up to 5); without the file or a
// nameserver in it, it asks 127.0.0.1. On Windows there is no such file: set Servers.
//
// Of names that are not complete it tries those that the search list makes, and ends
// at the first that exists. It also ends at the first for which there is no answer,
// because a later one could be somebody else's.
type Resolver struct {
	// Servers are DNS servers, such as "10.0.0.53:53", instead of those of
	// resolv.conf. They are asked in order.
	Servers []string

	ConfigFile string // empty means /etc/resolv.conf
	HostsFile  string // empty means /etc/hosts, or on Windows what corresponds to it

	// Dial makes the connection to a server, instead of a net.Dialer. The network is
	// "udp", or "tcp" if an answer was too long for that. A connection that is not a
	// net.PacketConn is spoken to as DNS over TCP is, whatever the network.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

const (
	minTTL      = time.Second     // nobody is asked more often than this, whatever the TTL
	maxTTL      = 5 * time.Minute // nor more rarely: a TTL may be a mistake, and its author wants to be able to mend it
	hostsTTL    = 5 * time.Second // an answer out of the hosts file, which has no TTL
	negativeTTL = 5 * time.Second // "there is none" without the SOA record that says for how long (RFC 2308)

	familyGrace = time.Second // for the answer about one family, after that about the other

	udpSize    = 1232 // bytes: what no path has to fragment (DNS flag day 2020)
	maxAliases = 8    // CNAMEs in a row

	maxConfig = 64 << 10 // bytes of resolv.conf
	maxHosts  = 16 << 20 // bytes of hosts; lists of unwanted names take megabytes
)

// A family is what is known of a host's IPv4 or of its IPv6 addresses. None and no
// error is an answer too: there are none, for ttl.
type family struct {
	addrs []netip.Addr
	ttl   time.Duration
	err   error
}

// host looks up a host's addresses of both families. What is wrong with the hosts file is
// told beside them: DNS is asked all the same.
func (r *Resolver) host(ctx context.Context, name string) (found [2]family, odd error) {
	found, odd = r.hosts(name)
	if len(found[0].addrs)+len(found[1].addrs) > 0 {
		return found, odd
	}
	config, err := r.config()
	if err != nil {
		return [2]family{{err: err}, {err: err}}, odd
	}
	ttl := maxTTL
	for _, candidate := range candidates(config, name) {
		found = r.families(ctx, config, candidate)
		for i := range found {
			if found[i].err != nil || len(found[i].addrs) > 0 {
				return found, odd
			}
			ttl = min(ttl, found[i].ttl)
		}
	}
	return [2]family{{ttl: ttl}, {ttl: ttl}}, odd
}

// families asks for both at the same time. Once one is known to have addresses, the other
// is not waited for much longer: there are networks where nobody answers about it.
func (r *Resolver) families(ctx context.Context, config *dns.ClientConfig, name string) (found [2]family) {
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	kinds := [2]uint16{dns.TypeA, dns.TypeAAAA}
	ended := make(chan int, 2)
	for i, kind := range kinds {
		go func() { // until its answer, the last time-out or giveUp; it is waited for
			found[i] = r.family(ctx, config, name, kind)
			ended <- i
		}()
	}
	first := <-ended
	if len(found[first].addrs) > 0 {
		late := time.AfterFunc(familyGrace, func() {
			giveUp(fmt.Errorf("nobody answers about %s records", dns.TypeToString[kinds[1-first]]))
		})
		defer late.Stop()
	}
	<-ended
	return found
}

func (r *Resolver) family(ctx context.Context, config *dns.ClientConfig, name string, kind uint16) family {
	answer, err := r.lookup(ctx, config, name, kind)
	if err != nil {
		return family{err: err}
	}
	f := family{ttl: answer.ttl}
	for _, record := range answer.records {
		if addr, ok := addressOf(record); ok {
			f.addrs = append(f.addrs, addr)
		}
	}
	return f
}

// addressOf returns the address in an A or AAAA record. An unspecified one, with which
// resolvers block names, would lead back to this machine.
func addressOf(record dns.RR) (addr netip.Addr, ok bool) {
	switch record := record.(type) {
	case *dns.A:
		addr, ok = netip.AddrFromSlice(record.A)
	case *dns.AAAA:
		addr, ok = netip.AddrFromSlice(record.AAAA)
	}
	addr = addr.Unmap()
	return addr, ok && !addr.IsUnspecified()
}

// records are what DNS has of a type for a name. None is an answer too: there are
// none, for ttl.
type records struct {
	records []dns.RR
	extra   []dns.RR // what came along, such as the addresses of what the records name
	ttl     time.Duration
}

// services looks up SRV records.
func (r *Resolver) services(ctx context.Context, name string) (found records, err error) {
	config, err := r.config()
	if err != nil {
		return records{}, err
	}
	ttl := maxTTL
	for _, candidate := range candidates(config, name) {
		found, err = r.lookup(ctx, config, candidate, dns.TypeSRV)
		if err != nil || len(found.records) > 0 {
			return found, err
		}
		ttl = min(ttl, found.ttl)
	}
	return records{ttl: ttl}, nil
}

// lookup looks up a complete name, and what it is an alias of.
func (r *Resolver) lookup(ctx context.Context, config *dns.ClientConfig, name string, kind uint16) (records, error) {
	ttl := maxTTL
	for range maxAliases {
		answer, err := r.ask(ctx, config, name, kind)
		if err != nil {
			return records{}, fmt.Errorf("look up %s: %w", strings.TrimSuffix(name, "."), err)
		}
		found, end, good := follow(answer.Answer, name, kind)
		ttl = min(ttl, good)
		absentFor, soa := negative(answer.Ns)
		switch {
		case len(found) > 0:
			return records{found, answer.Extra, max(ttl, minTTL)}, nil
		case end == "":
			return records{}, tooManyAliases(name)
		case strings.EqualFold(end, name), answer.Rcode == dns.RcodeNameError, soa:
			return records{ttl: max(min(ttl, absentFor), minTTL)}, nil
		}
		name = end // whoever answered does not look for the rest by itself
	}
	return records{}, tooManyAliases(name)
}

func tooManyAliases(name string) error {
	return fmt.Errorf("look up %s: more than %d aliases in a row", strings.TrimSuffix(name, "."), maxAliases)
}

// follow returns what an answer has of a type for a name, or for the one at the end of
// its aliases, and for how long that is good. Aliases that do not end lead to "".
func follow(answer []dns.RR, name string, kind uint16) (found []dns.RR, end string, ttl time.Duration) {
	ttl = maxTTL
	for range maxAliases {
		alias := ""
		for _, record := range answer {
			head := record.Header()
			if head.Class != dns.ClassINET || !strings.EqualFold(head.Name, name) {
				continue
			}
			cname, ok := record.(*dns.CNAME)
			switch {
			case head.Rrtype == kind:
				found = append(found, record)
			case ok:
				alias = cname.Target
			default:
				continue
			}
			ttl = min(ttl, seconds(head.Ttl))
		}
		if len(found) > 0 || alias == "" {
			return found, name, ttl
		}
		name = alias
	}
	return nil, "", ttl
}

// negative returns for how long "there is none" is good, and whether the answer's
// authority section said so (RFC 2308 section 5).
func negative(authority []dns.RR) (ttl time.Duration, said bool) {
	for _, record := range authority {
		if soa, ok := record.(*dns.SOA); ok {
			return seconds(min(soa.Hdr.Ttl, soa.Minttl)), true
		}
	}
	return negativeTTL, false
}

func seconds(n uint32) time.Duration { return time.Duration(n) * time.Second }

// ask asks one server after the other until one has an answer, which may be that there
// is no such name.
func (r *Resolver) ask(ctx context.Context, config *dns.ClientConfig, name string, kind uint16) (answer *dns.Msg, err error) {
	for range config.Attempts {
		for _, server := range config.Servers {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			answer, err = r.askServer(ctx, server, seconds(uint32(config.Timeout)), name, kind)
			if err == nil {
				return answer, nil
			}
		}
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, err
}

func (r *Resolver) askServer(ctx context.Context, server string, timeout time.Duration, name string, kind uint16) (*dns.Msg, error) {
	query := new(dns.Msg).SetQuestion(name, kind).SetEdns0(udpSize, false)
	answer, err := r.exchange(ctx, "udp", server, timeout, query)
	if answer != nil && answer.Truncated {
		answer, err = r.exchange(ctx, "tcp", server, timeout, query)
	}
	switch {
	case err != nil:
		return nil, err
	case !answer.Response || len(answer.Question) != 1 ||
		answer.Question[0].Qtype != kind || !strings.EqualFold(answer.Question[0].Name, name):
		return nil, fmt.Errorf("%s: an answer to another question", server)
	case answer.Rcode != dns.RcodeSuccess && answer.Rcode != dns.RcodeNameError:
		return nil, fmt.Errorf("%s: %s", server, rcode(answer.Rcode))
	}
	return answer, nil
}

func rcode(n int) string {
	if word, ok := dns.RcodeToString[n]; ok {
		return word
	}
	return fmt.Sprintf("RCODE %d", n)
}

// exchange may return an answer with an error, if it can be read in part.
func (r *Resolver) exchange(ctx context.Context, network, server string, timeout time.Duration, query *dns.Msg) (*dns.Msg, error) {
	inTime, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	dial := r.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	conn, err := dial(inTime, network, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() }) // the time-out is the client's
	defer stop()
	client := dns.Client{Timeout: timeout}
	answer, _, err := client.ExchangeWithConnContext(inTime, query, &dns.Conn{Conn: conn})
	return answer, err
}

// config reads resolv.conf.
func (r *Resolver) config() (*dns.ClientConfig, error) {
	var text io.Reader = strings.NewReader("")
	file, err := os.Open(or(r.ConfigFile, "/etc/resolv.conf"))
	switch {
	case err == nil:
		defer file.Close()
		text = file
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	config, err := readConfig(text)
	if err != nil {
		return nil, err
	}
	if len(r.Servers) > 0 {
		config.Servers = r.Servers
	}
	return config, nil
}

// readConfig reads resolv.conf into bounds: the C library's.
func readConfig(text io.Reader) (*dns.ClientConfig, error) {
	config, err := dns.ClientConfigFromReader(io.LimitReader(text, maxConfig))
	if err != nil {
		return nil, err
	}
	config.Timeout = min(config.Timeout, 30)
	config.Attempts = min(config.Attempts, 5)
	var servers []string
	for _, server := range config.Servers {
		if addr, err := netip.ParseAddr(server); err == nil && len(servers) < 3 {
			servers = append(servers, netip.AddrPortFrom(addr, 53).String())
		}
	}
	if len(servers) == 0 {
		servers = []string{"127.0.0.1:53"}
	}
	config.Servers = servers
	return config, nil
}

// candidates are the complete names that a name may stand for.
func candidates(config *dns.ClientConfig, name string) []string {
	return slices.DeleteFunc(config.NameList(name), func(candidate string) bool {
		_, ok := dns.IsDomainName(candidate) // "search ." is a habit of systemd-resolved
		return !ok || len(candidate) > 254
	})
}

// hosts looks for a name in the hosts file.
func (r *Resolver) hosts(name string) (found [2]family, err error) {
	file, err := os.Open(or(r.HostsFile, hostsFile()))
	if errors.Is(err, fs.ErrNotExist) {
		return found, nil
	}
	if err != nil {
		return found, err
	}
	defer file.Close()
	found, err = findHost(io.LimitReader(file, maxHosts), name)
	if err != nil {
		return found, fmt.Errorf("read %s: %w", file.Name(), err)
	}
	return found, nil
}

func hostsFile() string {
	if runtime.GOOS == "windows" {
		return filepath.Join(os.Getenv("SystemRoot"), `System32\drivers\etc\hosts`)
	}
	return "/etc/hosts"
}

// findHost looks for a name in a text of lines "address name alias...".
func findHost(text io.Reader, name string) (found [2]family, err error) {
	name = strings.TrimSuffix(name, ".")
	lines := bufio.NewScanner(text)
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.Fields(line)
		if !slices.ContainsFunc(words, func(word string) bool { return strings.EqualFold(word, name) }) {
			continue
		}
		addr, err := netip.ParseAddr(words[0])
		if err != nil || strings.EqualFold(words[0], name) {
			continue
		}
		f := &found[0]
		if addr = addr.Unmap(); addr.Is6() {
			f = &found[1]
		}
		f.addrs, f.ttl = append(f.addrs, addr), hostsTTL
	}
	return found, lines.Err()
}

func or(path, standard string) string {
	if path == "" {
		return standard
	}
	return path
}
