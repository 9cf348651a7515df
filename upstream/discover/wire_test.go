package discover_test

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/levee-net/levee/upstream/discover"
)

// These tests ask a real DNS server over real sockets.

// listen serves the handler over UDP and TCP on one port of its own.
func listen(t *testing.T, handler dns.HandlerFunc) (address string) {
	t.Helper()
	var (
		l    net.Listener
		conn net.PacketConn
		err  error
	)
	for range 10 { // until both have the port
		l, err = net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		conn, err = net.ListenPacket("udp", l.Addr().String())
		if err == nil {
			break
		}
		l.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range []*dns.Server{{Listener: l, Handler: handler}, {PacketConn: conn, Handler: handler}} {
		started, ended := make(chan struct{}), make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		go func() { // until Shutdown
			defer close(ended)
			_ = server.ActivateAndServe()
		}()
		<-started
		t.Cleanup(func() {
			_ = server.Shutdown()
			<-ended
		})
	}
	return l.Addr().String()
}

// real is a resolver that asks these servers.
func real(t *testing.T, config string, servers ...string) *discover.Resolver {
	return &discover.Resolver{
		Servers:    servers,
		ConfigFile: write(t, "resolv.conf", config),
		HostsFile:  write(t, "hosts", ""),
	}
}

func isUDP(w dns.ResponseWriter) bool { return w.RemoteAddr().Network() == "udp" }

func reply(t *testing.T, query *dns.Msg, records ...string) *dns.Msg {
	answer := new(dns.Msg).SetReply(query)
	for _, text := range records {
		record, err := dns.NewRR(text)
		if err != nil {
			t.Error(err)
			return answer
		}
		if record.Header().Rrtype == query.Question[0].Qtype {
			answer.Answer = append(answer.Answer, record)
		}
	}
	return answer
}

func TestAnswerThatIsTooLongForADatagramComesOverTCP(t *testing.T) {
	var records, want []string
	for i := range 120 {
		records = append(records, fmt.Sprintf("db.example.com. 60 IN A 10.0.0.%d", i+1))
		want = append(want, fmt.Sprintf("10.0.0.%d:1", i+1))
	}
	address := listen(t, func(w dns.ResponseWriter, query *dns.Msg) {
		answer := reply(t, query, records...)
		if isUDP(w) {
			answer.Truncate(int(query.IsEdns0().UDPSize()))
			if size := answer.Len(); size > 1232 {
				t.Errorf("an answer of %d bytes", size)
			}
		}
		_ = w.WriteMsg(answer)
	})
	r := newRun(t)
	r.start(&discover.DNS{Name: "db.example.com", Port: 1, Resolver: real(t, "", address), Problem: r.problem})
	r.await(strings.Join(want, ", "))
}

func TestDatagramOfAThousandBytesIsReadWhole(t *testing.T) {
	var records, want []string
	for i := range 27 {
		records = append(records, fmt.Sprintf("db.example.com. 60 IN AAAA 2001:db8::%x", i+1))
		want = append(want, fmt.Sprintf("[2001:db8::%x]:1", i+1))
	}
	address := listen(t, func(w dns.ResponseWriter, query *dns.Msg) {
		if !isUDP(w) {
			t.Error("asked over TCP")
		}
		answer := reply(t, query, records...)
		if size := answer.Len(); len(answer.Answer) > 0 && size < 1000 || size > 1232 {
			t.Errorf("an answer of %d bytes", size)
		}
		_ = w.WriteMsg(answer)
	})
	r := newRun(t)
	r.start(&discover.DNS{Name: "db.example.com", Port: 1, Resolver: real(t, "", address), Problem: r.problem})
	r.await(strings.Join(want, ", "))
}

func TestNextServerIsAskedWhenOneFails(t *testing.T) {
	for name, lame := range map[string]dns.HandlerFunc{
		"refuses": func(w dns.ResponseWriter, query *dns.Msg) {
			_ = w.WriteMsg(new(dns.Msg).SetRcode(query, dns.RcodeRefused))
		},
		"answers another question": func(w dns.ResponseWriter, query *dns.Msg) {
			answer := reply(t, query, "db.example.com. 60 IN A 10.6.6.6", "db.example.com. 60 IN AAAA 2001:db8::666")
			answer.Question[0].Name = "bd.example.com."
			_ = w.WriteMsg(answer)
		},
		"answers for another type": func(w dns.ResponseWriter, query *dns.Msg) {
			answer := reply(t, query, "db.example.com. 60 IN A 10.6.6.6", "db.example.com. 60 IN AAAA 2001:db8::666")
			answer.Question[0].Qtype = dns.TypeMX
			_ = w.WriteMsg(answer)
		},
		"answers with a question": func(w dns.ResponseWriter, query *dns.Msg) {
			answer := reply(t, query, "db.example.com. 60 IN A 10.6.6.6", "db.example.com. 60 IN AAAA 2001:db8::666")
			answer.Response = false
			_ = w.WriteMsg(answer)
		},
		"sends nonsense": func(w dns.ResponseWriter, query *dns.Msg) {
			_, _ = w.Write([]byte{byte(query.Id >> 8), byte(query.Id), 0x80, 0, 0, 1, 0, 1, 0, 0, 0, 0, 77})
		},
		"has only half of it": func(w dns.ResponseWriter, query *dns.Msg) {
			if isUDP(w) {
				answer := reply(t, query, "db.example.com. 60 IN A 10.6.6.6", "db.example.com. 60 IN AAAA 2001:db8::666")
				answer.Truncated = true
				_ = w.WriteMsg(answer)
				return
			}
			_ = w.Close()
		},
		"says nothing": func(dns.ResponseWriter, *dns.Msg) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			good := listen(t, func(w dns.ResponseWriter, query *dns.Msg) {
				_ = w.WriteMsg(reply(t, query, "db.example.com. 60 IN A 10.0.0.7"))
			})
			r := newRun(t)
			resolver := real(t, "options timeout:1 attempts:1", listen(t, lame), good)
			r.start(&discover.DNS{Name: "db.example.com", Port: 1, Resolver: resolver, Problem: r.problem})
			r.await("10.0.0.7:1")
		})
	}
}

func TestAnswerWithAnotherNumberIsNotBelieved(t *testing.T) {
	address := listen(t, func(w dns.ResponseWriter, query *dns.Msg) {
		forged := reply(t, query, "db.example.com. 60 IN A 10.6.6.6", "db.example.com. 60 IN AAAA 2001:db8::666")
		forged.Id++
		_ = w.WriteMsg(forged)
		_ = w.WriteMsg(reply(t, query, "db.example.com. 60 IN A 10.0.0.7"))
	})
	r := newRun(t)
	r.start(&discover.DNS{Name: "db.example.com", Port: 1, Resolver: real(t, "", address), Problem: r.problem})
	r.await("10.0.0.7:1")
}

func TestChangeIsNoticedAfterTheTTL(t *testing.T) {
	began := time.Now()
	address := listen(t, func(w dns.ResponseWriter, query *dns.Msg) {
		record := "db.example.com. 1 IN A 10.0.0.7"
		if time.Since(began) > time.Second {
			record = "db.example.com. 60 IN A 10.0.0.8"
		}
		_ = w.WriteMsg(reply(t, query, record))
	})
	r := newRun(t)
	r.start(&discover.DNS{Name: "db.example.com", Port: 1, Resolver: real(t, "", address), Problem: r.problem})
	r.await("10.0.0.7:1")
	r.await("10.0.0.8:1")
}

func TestLeavingDoesNotWaitForAnAnswer(t *testing.T) {
	asked := make(chan struct{}, 2)
	address := listen(t, func(dns.ResponseWriter, *dns.Msg) { asked <- struct{}{} })
	r := newRun(t)
	t.Run("while it waits", func(t *testing.T) {
		r.t = t
		r.start(&discover.DNS{Name: "db.example.com", Port: 1, Resolver: real(t, "options timeout:30", address)})
		<-asked
	})
	if len(r.updates) > 0 {
		t.Errorf("told %q", r.updates)
	}
}
