package e2e

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	library "github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
	"github.com/levee-net/levee/proxy"
	"github.com/levee-net/levee/route"
)

// A tlsFront ends TLS before a server that speaks plaintext. It is of the library, in this
// process.
type tlsFront struct {
	address string
	ca      string // a file
}

// fronting serves a front whose clients begin TLS by a command.
func fronting(t *testing.T, server string, dialogue route.Dialogue, meet func(context.Context, *library.Conn, net.Conn) error) tlsFront {
	t.Helper()
	p := proxy.To(server)
	p.Meet = meet
	return beginning(t, dialogue, p)
}

// beginning serves clients that begin TLS by a command.
func beginning(t *testing.T, dialogue route.Dialogue, h library.Handler) tlsFront {
	t.Helper()
	ca := leveetest.NewCA(t)
	l, err := library.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &library.Server{
		Handler: &route.Router{StartTLS: dialogue, RequireTLS: true, TLS: ca.ServerConfig("localhost", "127.0.0.1"), Routes: []route.Route{{Handler: h}}},
		Trace: &library.Trace{Closed: func(_ *library.Conn, end library.End) {
			if end.Err != nil {
				t.Logf("a connection ended with %v: %v", end.Reason, end.Err)
			}
		}},
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(context.Background(), l)
	}()
	t.Cleanup(func() {
		srv.Close()
		<-served
	})
	return tlsFront{l.Addr().String(), write(t, "ca.pem", string(ca.PEM()))}
}

func TestMariaDBsClientsLogInThroughTLSThatEndsHere(t *testing.T) {
	t.Parallel()
	need(t, "mariadb")
	_, socket := mariaDB(t)
	f := fronting(t, "unix:"+socket, route.MySQLTLS("10.11.0-MariaDB"), route.MeetMySQL)
	mysql := func(t *testing.T, statement string, args ...string) (string, error) {
		t.Helper()
		args = append([]string{"--no-defaults", "-h", "localhost", "--protocol=tcp", "-P", portOf(t, f.address), "--ssl-ca=" + f.ca, "--ssl-verify-server-cert", "-N", "-B"}, args...)
		return client(t, "", "mariadb", append(args, "-e", statement)...)
	}
	for what, test := range map[string]struct {
		args      []string
		statement string
		want      string
	}{
		"no password":            {[]string{"-u", "levee"}, "SELECT CURRENT_USER()", "levee@localhost\n"},
		"a password":             {[]string{"-u", "secretive", "-psecret"}, "SELECT CURRENT_USER()", "secretive@localhost\n"},
		"a database":             {[]string{"-u", "levee", "-D", "information_schema"}, "SELECT DATABASE()", "information_schema\n"},
		"a long answer":          {[]string{"-u", "levee"}, "SELECT REPEAT('x', 100000)", strings.Repeat("x", 100_000) + "\n"},
		"statement by statement": {[]string{"-u", "levee"}, "SELECT 1; SELECT 2", "1\n2\n"},
	} {
		t.Run(what, func(t *testing.T) {
			out, err := mysql(t, test.statement, test.args...)
			if err != nil || out != test.want {
				t.Errorf("%.200s, %v, want %.200s", out, err, test.want)
			}
		})
	}
	out, err := mysql(t, "SELECT 1", "-u", "secretive", "-pwrong")
	if err == nil || !strings.Contains(out, "ERROR 1045 (28000): Access denied for user 'secretive'@'localhost' (using password: YES)") {
		t.Errorf("a wrong password: %s, %v", out, err)
	}
	out, err = client(t, "", "mariadb", "--no-defaults", "-h", "localhost", "--protocol=tcp", "-P", portOf(t, f.address), "-u", "levee", "--disable-ssl", "-e", "SELECT 1")
	if err == nil || !strings.Contains(out, "ERROR 3159 (HY000)") {
		t.Errorf("in plaintext: %s, %v", out, err)
	}
}

// exim starts an SMTP server that puts all mail into its queue, and returns what lists that.
func exim(t *testing.T) (address string, queue func() string) {
	t.Helper()
	need(t, "exim4")
	me, err := user.Current()
	if err != nil {
		t.Skipf("skipped: %v", err)
	}
	as := me.Username
	if os.Geteuid() == 0 {
		as = "Debian-exim" // it does not take mail as root
	}
	dir := openDir(t, as)
	port := freePorts(t, 1)[0]
	conf := filepath.Join(dir, "exim.conf")
	if err := os.WriteFile(conf, []byte(`
primary_hostname = mx.test
exim_user = `+as+`
spool_directory = `+dir+`
log_file_path = `+dir+`/%slog
pid_file_path = `+dir+`/pid
tls_advertise_hosts =
host_lookup =
rfc1413_hosts =
queue_only
acl_smtp_rcpt = accept
acl_smtp_data = accept
`), 0o644); err != nil {
		t.Fatal(err)
	}
	listening(t, port, exec.Command("exim4", "-C", conf, "-bdf", "-oX", "127.0.0.1."+port))
	return "127.0.0.1:" + port, func() string { return run(t, "exim4", "-C", conf, "-bp") }
}

// openDir returns a folder of the user's, with a short path.
func openDir(t *testing.T, username string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	owner, err := user.Lookup(username)
	if err != nil {
		t.Skipf("skipped: %v", err)
	}
	uid, _ := strconv.Atoi(owner.Uid)
	gid, _ := strconv.Atoi(owner.Gid)
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestMailIsSubmittedThroughTLSThatEndsBeforeExim(t *testing.T) {
	t.Parallel()
	server, queue := exim(t)
	f := fronting(t, server, route.SMTPTLS("mx.test"), route.MeetSMTP)
	mail := write(t, "mail", "Subject: hello\r\n\r\nhow are you\r\n")
	submit := func(more ...string) (string, error) {
		return client(t, "", "curl", append([]string{
			"-sS", "smtp://localhost:" + portOf(t, f.address) + "/client.test",
			"--cacert", f.ca, "--mail-from", "alice@a.test", "--mail-rcpt", "bob@b.test", "-T", mail,
		}, more...)...)
	}
	if out, err := submit("--ssl-reqd"); err != nil {
		t.Fatalf("%s, %v", out, err)
	}
	if out := queue(); !strings.Contains(out, "<alice@a.test>") || !strings.Contains(out, "bob@b.test") {
		t.Errorf("the queue is %q", out)
	}
	if out, err := submit(); err == nil || !strings.Contains(out, "530") {
		t.Errorf("in plaintext: %s, %v", out, err)
	}
}

// dovecot starts an IMAP server without TLS, whose users have the password secret.
func dovecot(t *testing.T) (address string) {
	t.Helper()
	need(t, "dovecot")
	me, err := user.Current()
	if err != nil {
		t.Skipf("skipped: %v", err)
	}
	as, internal := me.Username, "default_internal_user = "+me.Username+"\ndefault_login_user = "+me.Username+"\n"
	if os.Geteuid() == 0 {
		as, internal = "nobody", "" // it opens no mailboxes as root
	}
	dir := openDir(t, as)
	port := freePorts(t, 1)[0]
	conf := write(t, "dovecot.conf", internal+`
base_dir = `+dir+`/run
log_path = /dev/stderr
protocols = imap
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
mail_location = maildir:`+dir+`/mail
passdb {
  driver = static
  args = password=secret
}
userdb {
  driver = static
  args = uid=`+as+` gid=`+groupOf(t, as)+` home=`+dir+`
}
service imap-login {
  chroot =
  inet_listener imap {
    port = `+port+`
  }
  inet_listener imaps {
    port = 0
  }
}
service anvil {
  chroot =
}
`)
	listening(t, port, exec.Command("dovecot", "-F", "-c", conf))
	return "127.0.0.1:" + port
}

func groupOf(t *testing.T, username string) string {
	t.Helper()
	owner, err := user.Lookup(username)
	if err != nil {
		t.Skipf("skipped: %v", err)
	}
	return owner.Gid
}

func TestAMailboxIsReadThroughTLSThatEndsBeforeDovecot(t *testing.T) {
	t.Parallel()
	f := fronting(t, dovecot(t), route.IMAPTLS, route.MeetIMAP)
	ask := func(more ...string) (string, error) {
		return client(t, "", "curl", append([]string{"-sS", "imap://localhost:" + portOf(t, f.address) + "/", "--cacert", f.ca}, more...)...)
	}
	if out, err := ask("--ssl-reqd", "-u", "alice:secret"); err != nil || !strings.Contains(out, "INBOX") {
		t.Errorf("%s, %v", out, err)
	}
	if out, err := ask("--ssl-reqd", "-u", "alice:wrong"); err == nil || !strings.Contains(out, "denied") {
		t.Errorf("a wrong password: %s, %v", out, err)
	}
	if out, err := ask("-u", "alice:secret"); err == nil {
		t.Errorf("in plaintext: %s", out)
	}
}

// slapd starts an LDAP server without TLS, whose administrator has the password secret.
func slapd(t *testing.T) (address string) {
	t.Helper()
	need(t, "slapd")
	dir := t.TempDir()
	port := freePorts(t, 1)[0]
	conf := filepath.Join(dir, "slapd.conf")
	if err := os.WriteFile(conf, []byte(`
include /etc/ldap/schema/core.schema
pidfile `+dir+`/pid
database ldif
suffix "dc=test"
directory `+dir+`
rootdn "cn=admin,dc=test"
rootpw secret
`), 0o600); err != nil {
		t.Fatal(err)
	}
	listening(t, port, exec.Command("slapd", "-d", "0", "-f", conf, "-h", "ldap://127.0.0.1:"+port))
	return "127.0.0.1:" + port
}

func TestADirectoryIsSearchedThroughTLSThatEndsBeforeSlapd(t *testing.T) {
	t.Parallel()
	need(t, "ldapwhoami")
	f := fronting(t, slapd(t), route.LDAPTLS, nil)
	ask := func(program string, args ...string) (string, error) {
		return client(t, "", "env", append([]string{"LDAPTLS_CACERT=" + f.ca, program, "-x", "-H", "ldap://" + f.address}, args...)...)
	}
	if out, err := ask("ldapwhoami", "-ZZ", "-D", "cn=admin,dc=test", "-w", "secret"); err != nil || !strings.Contains(out, "dn:cn=admin,dc=test") {
		t.Errorf("%s, %v", out, err)
	}
	if out, err := ask("ldapsearch", "-ZZ", "-b", "", "-s", "base", "namingContexts"); err != nil || !strings.Contains(out, "namingContexts: dc=test") {
		t.Errorf("%s, %v", out, err)
	}
	if out, err := ask("ldapwhoami", "-D", "cn=admin,dc=test", "-w", "secret"); err == nil || !strings.Contains(out, "Confidentiality required") {
		t.Errorf("in plaintext: %s, %v", out, err)
	}
}

// Clients of three kinds of TLS come to it by their protocol's command.
func TestOpenSSLAndGnuTLSBeginTLSByACommand(t *testing.T) {
	t.Parallel()
	for protocol, dialogue := range map[string]route.Dialogue{
		"smtp": route.SMTPTLS("mx.test"), "imap": route.IMAPTLS, "mysql": route.MySQLTLS(""), "ldap": route.LDAPTLS, "postgres": route.PostgresTLS,
	} {
		f := beginning(t, dialogue, library.HandlerFunc(func(_ context.Context, c *library.Conn) error {
			_, err := io.WriteString(c, "this is "+protocol+"\n")
			return err
		}))
		t.Run("openssl "+protocol, func(t *testing.T) {
			out, err := client(t, "", "openssl", "s_client", "-quiet", "-starttls", protocol, "-connect", f.address, "-CAfile", f.ca,
				"-verify_return_error", "-verify_hostname", "localhost", "-servername", "localhost")
			if err != nil || !strings.Contains(out, "this is "+protocol+"\n") {
				t.Errorf("%s, %v", out, err)
			}
		})
		if protocol == "mysql" { // gnutls-cli does not know it
			continue
		}
		t.Run("gnutls-cli "+protocol, func(t *testing.T) {
			out, err := client(t, "", "gnutls-cli", "--starttls-proto="+protocol, "--x509cafile="+f.ca, "-p", portOf(t, f.address), "localhost")
			if err != nil || !strings.Contains(out, "this is "+protocol+"\n") {
				t.Errorf("%s, %v", out, err)
			}
		})
	}
}

func TestAConfigurationBeginsTLSByACommand(t *testing.T) {
	t.Parallel()
	ca := leveetest.NewCA(t)
	cert, key := ca.WriteFiles(t.TempDir(), "localhost")
	serve := func(t *testing.T, word, server string) (port string) {
		t.Helper()
		p := start(t, "serve", "-c", write(t, "levee.yaml", `version: 1
admin: {listen: off}
listeners:
  - name: main
    listen: ["127.0.0.1:0"]
    tls: {certificates: [{cert: `+cert+`, key: `+key+`}]}
    starttls: `+word+`
    routes: [{upstream: behind}]
upstreams:
  - name: behind
    servers: ["`+server+`"]
`))
		return portOf(t, p.address())
	}
	t.Run("smtp", func(t *testing.T) {
		server, _ := exim(t)
		out, err := client(t, "NOOP\r\nQUIT\r\n", "openssl", "s_client", "-starttls", "smtp", "-crlf", "-quiet", "-verify_return_error",
			"-CAfile", write(t, "ca.pem", string(ca.PEM())), "-servername", "localhost", "-connect", "127.0.0.1:"+serve(t, "smtp", server))
		if err != nil || !strings.Contains(out, "250 OK") || !strings.Contains(out, "221 mx.test closing connection") {
			t.Errorf("%s, %v", out, err)
		}
	})
	t.Run("mysql", func(t *testing.T) {
		need(t, "mariadb")
		_, socket := mariaDB(t)
		out, err := client(t, "", "mariadb", "--no-defaults", "-h", "localhost", "--protocol=tcp", "-P", serve(t, "mysql", "unix:"+socket),
			"--ssl-ca="+write(t, "ca.pem", string(ca.PEM())), "--ssl-verify-server-cert", "-N", "-B", "-u", "levee", "-e", "SELECT CURRENT_USER()")
		if err != nil || out != "levee@localhost\n" {
			t.Errorf("%s, %v", out, err)
		}
	})
}
