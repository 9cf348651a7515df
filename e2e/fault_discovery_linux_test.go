package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// named greets with its address before it echoes: clients can tell where they are.
func named(c net.Conn) {
	fmt.Fprintln(c, c.LocalAddr())
	echo(c)
}

// whereIs makes a connection and returns the address that greets, and the connection.
func whereIs(t *testing.T, address string) (server string, c *chat) {
	t.Helper()
	c = &chat{Conn: dial(t, address)}
	if _, err := fmt.Fscanln(c, &server); err != nil {
		t.Fatal(err)
	}
	return server, c
}

// areOn reports whether a few new connections are on these servers, and on each of them.
func areOn(t *testing.T, address string, servers ...string) bool {
	t.Helper()
	found := make(map[string]bool)
	for range 2 * len(servers) {
		server, c := whereIs(t, address)
		c.Close()
		found[server] = true
	}
	for _, s := range servers {
		if !found[s] {
			return false
		}
	}
	return len(found) == len(servers)
}

// A zone is a DNS server that knows the addresses of one name.
type zone struct {
	name  string
	ttl   time.Duration
	addrs atomic.Pointer[[]netip.Addr]
	asked atomic.Int64 // for addresses of version 4
}

// ServeDNS answers.
func (z *zone) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	answer := new(dns.Msg)
	answer.SetReply(q)
	question := q.Question[0]
	switch {
	case question.Name != z.name:
		answer.Rcode = dns.RcodeNameError
	case question.Qtype == dns.TypeA:
		z.asked.Add(1)
		for _, addr := range *z.addrs.Load() {
			answer.Answer = append(answer.Answer, &dns.A{
				Hdr: dns.RR_Header{Name: z.name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: uint32(z.ttl.Seconds())},
				A:   addr.AsSlice(),
			})
		}
	}
	_ = w.WriteMsg(answer)
}

func (z *zone) tells(addrs ...netip.Addr) { z.addrs.Store(&addrs) }

// serves answers questions at an address of its own, as resolv.conf has no place for a port.
func (z *zone) serves(t *testing.T) (nameserver string) {
	t.Helper()
	addr := netip.AddrFrom4([4]byte{127, 53, byte(os.Getpid() >> 8), byte(os.Getpid())})
	conn, err := net.ListenPacket("udp", netip.AddrPortFrom(addr, 53).String())
	if err != nil {
		t.Skipf("skipped: no DNS server: %v", err)
	}
	server := &dns.Server{PacketConn: conn, Handler: z}
	ended := make(chan struct{})
	go func() { // ends with the test
		_ = server.ActivateAndServe()
		close(ended)
	}()
	t.Cleanup(func() {
		conn.Close()
		<-ended
	})
	return addr.String()
}

// sameEverywhere listens on loopback addresses at the same port.
func sameEverywhere(t *testing.T, addrs ...netip.Addr) (port uint16) {
	t.Helper()
	for _, addr := range addrs {
		l, err := net.Listen("tcp", netip.AddrPortFrom(addr, port).String())
		if err != nil {
			t.Fatal(err)
		}
		port = uint16(l.Addr().(*net.TCPAddr).Port)
		serve(t, l, named)
	}
	return port
}

func TestAddressesComeAndGoWithDNSAndLiveConnectionsStay(t *testing.T) {
	t.Parallel()
	if out, err := client(t, "", "unshare", "--mount", "true"); err != nil {
		t.Skipf("skipped: levee cannot have a resolv.conf of its own: %v: %s", err, out)
	}
	const ttl, delay = time.Second, 2 * time.Second // levee may ask just before a change
	addrs := []netip.Addr{netip.MustParseAddr("127.0.1.1"), netip.MustParseAddr("127.0.1.2"), netip.MustParseAddr("127.0.1.3")}
	port := sameEverywhere(t, addrs...)
	at := func(i int) string { return netip.AddrPortFrom(addrs[i], port).String() }
	z := &zone{name: "db.levee.test.", ttl: ttl}
	z.tells(addrs[0], addrs[1])
	resolv := write(t, "resolv.conf", "nameserver "+z.serves(t)+"\n")
	path := ways(t, way{"main", "", servers(fmt.Sprintf("dns://db.levee.test:%d", port)) + `, slow_start: off, health: {interval: off}`})
	p := launch(t, exec.Command("unshare", "--mount", "sh", "-c", `mount --bind "$1" /etc/resolv.conf && exec "$2" serve -c "$3"`,
		"sh", resolv, levee, path))
	address := p.addressOf(0)
	if !areOn(t, address, at(0), at(1)) {
		t.Error("the first clients are not on the servers that DNS tells")
	}
	var stay *chat
	eventually(t, "one is on the server that will go", func() bool {
		server, c := whereIs(t, address)
		stay = c
		return server == at(0)
	})

	for _, step := range []struct {
		what string
		now  []int
	}{
		{"one comes and one goes", []int{1, 2}},
		{"another goes", []int{2}},
		{"all come back", []int{0, 1, 2}},
	} {
		var now []netip.Addr
		var want []string
		for _, i := range step.now {
			now, want = append(now, addrs[i]), append(want, at(i))
		}
		z.tells(now...)
		changed := time.Now()
		eventually(t, step.what, func() bool { return areOn(t, address, want...) })
		if took := time.Since(changed); took > ttl+delay {
			t.Errorf("%s: after %v", step.what, took)
		}
		if err := stay.round(); err != nil {
			t.Errorf("%s: %v", step.what, err)
		}
	}

	z.tells() // for a moment, which is not believed
	before := z.asked.Load()
	eventually(t, "it has asked again", func() bool { return z.asked.Load() > before+1 })
	if !areOn(t, address, at(0), at(1), at(2)) {
		t.Error("servers are gone, as soon as DNS knows of none")
	}
	if err := stay.round(); err != nil {
		t.Error(err)
	}
}

func TestEditingTheFileMovesTraffic(t *testing.T) {
	t.Parallel()
	one, two := serve(t, listen(t), named), serve(t, listen(t), named)
	list := write(t, "servers", one+"\n")
	replace := func(content string) {
		t.Helper()
		draft := filepath.Join(filepath.Dir(list), "draft")
		if err := os.WriteFile(draft, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(draft, list); err != nil {
			t.Fatal(err)
		}
	}
	p := start(t, "serve", "-c", ways(t, way{"main", "", servers("file://"+list) + `, slow_start: off`}))
	address := p.addressOf(0)
	server, stay := whereIs(t, address)
	if server != one {
		t.Errorf("on %s", server)
	}
	replace("# both\n" + one + "\n" + two + "\n")
	eventually(t, "both are used", func() bool { return areOn(t, address, one, two) })
	replace(two + "\n")
	eventually(t, "only the other one is", func() bool { return areOn(t, address, two) })
	replace(one + " weight=lots\n")
	p.logged("servers may have changed unnoticed, trying again")
	if !areOn(t, address, two) {
		t.Error("a file with a mistake is believed")
	}
	if err := stay.round(); err != nil {
		t.Error(err)
	}
}
