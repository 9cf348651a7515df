package route

import "io"

// What the dialogues are made of, for fuzzing.
var (
	SMTPCommand  = smtpCommand
	IMAPCommand  = imapCommand
	SMTPReply    = smtpReply
	IMAPGreeting = imapGreeting
	LineGoesOn   = lineGoesOn
	LoginAnew    = loginAnew
)

// LDAPMessage tells the operation of a message, its number and size, and whether it is the request for TLS.
func LDAPMessage(b []byte) (operation byte, id []byte, size int, startTLS, hello bool, v Verdict) {
	m, v := ldapMessage(b)
	return m.operation, m.id, m.size, m.startTLS, m.hello, v
}

// MySQLAnswer tells whether a client's first packet is a request for TLS.
func MySQLAnswer(b []byte) (request bool, v Verdict) {
	kind, v := mysqlAnswer(b)
	return kind == mysqlRequest, v
}

// LogIn is what MeetMySQL does.
func LogIn(client, server io.ReadWriter) error { return logIn(client, server) }
