/* What the servers in C share: how they listen, and how they say where. */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

static void must(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

/* listen_somewhere listens on a port that the kernel chooses, and says which. */
static int listen_somewhere(void)
{
	int one = 1;
	struct sockaddr_in where = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof where;

	int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	must(listener >= 0, "socket");
	must(setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0, "TCP_NODELAY");
	must(bind(listener, (struct sockaddr *)&where, size) == 0, "bind");
	must(listen(listener, 1 << 16) == 0, "listen"); /* the kernel cuts it to somaxconn */
	must(getsockname(listener, (struct sockaddr *)&where, &size) == 0, "getsockname");
	printf("Listening on 127.0.0.1:%d\n", ntohs(where.sin_port));
	fflush(stdout);
	return listener;
}

/* end_with_reset makes the next close a reset. A proxy that has closed first would keep its port in TIME_WAIT
 * otherwise, and an address has 28,000 of them. */
static void end_with_reset(int fd)
{
	struct linger at_once = {.l_onoff = 1};
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
}
