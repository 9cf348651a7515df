// Package handover replaces a process by another in mid-traffic: its listening sockets, what its services know,
// and its live connections pass to the next one, and clients notice nothing.
//
// Its secret is how they pass so that, whatever dies, hangs or speaks garbage at whatever step, exactly one of the
// two serves. A program needs little for it:
//
//	func main() {
//		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
//		defer stop()
//		upgrade := make(chan os.Signal, 1)
//		signal.Notify(upgrade, syscall.SIGUSR2)
//
//		process, err := handover.Begin()
//		if err != nil {
//			log.Fatal(err)
//		}
//		srv := &levee.Server{Name: "echo", Handler: handler}
//		if err := process.ListenAndServe(ctx, upgrade, srv, "127.0.0.1:7000"); err != nil {
//			log.Fatal(err)
//		}
//	}
//
// Replace the binary, send it SIGUSR2, and the new one goes on. What a program with more to it does instead of
// [Process.ListenAndServe] is to call [Process.Listen], [Process.State] and [Process.Ready] where it begins, and
// [Process.Upgrade] when it is to be replaced.
//
// # What happens
//
// The old process starts the new one, and gives it its listening sockets and its state. The new one builds all
// that it needs, and says that it is ready; until then a failure of its has no effect. The old one goes on serving
// while it watches the new one settle. Then it stops accepting and tells the new one to accept, in which no client is lost,
// as the queue of those who have connected is the socket's. For some seconds everything can still be taken back. After that the live
// connections move, some hundred at a time, those of them that can (see [levee.Server.Pack]). The others are the old
// process's to drain, and when they have left it ends.
//
// If the new process dies, or does not answer for most of a second, the old one ends it and goes on, with the sockets and with
// every connection that the new one had not taken. If the old one dies, or says nothing for as long, the new
// one accepts as soon as it can. It never decides by itself that it is not to serve, as the old one might have died meanwhile.
//
// # Who else may have started the process
//
// Sockets also come from systemd: those of a socket unit (LISTEN_FDS, see sd_listen_fds(3)), and those that
// [Process.Store] has put into its file descriptor store, which outlive a crash together with the clients in their queues.
// Ready tells systemd that the service is up, and Upgrade that its main process is another. The unit needs
// NotifyAccess=all for that, as the new process is not the main one when it first has something to say.
//
// Processes are replaced on Linux only. Elsewhere a program works as if it had been started by nobody, and Upgrade
// returns [errors.ErrUnsupported].
package handover
