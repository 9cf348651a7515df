/*
 * The bare echo: one thread, one edge-triggered epoll, nothing that an echo can
 * do without. No timeouts, no limits, no counts. It is the floor that the other
 * servers are measured against: what it spends is spent in the kernel.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "listen.h"

enum {
	MAX_FDS = 1 << 16,     /* far beyond what the bench opens */
	MAX_EVENTS = 1024,     /* of one epoll_wait */
	BUFFER = 64 << 10,     /* shared by all connections: echoed before the next read */
};

/* What a client has sent and not yet taken back. Hardly ever anything: an echo
 * is as long as what came in, and that had room in a buffer of the same size. */
struct backlog {
	char *bytes;
	size_t at, end;
};

static struct backlog backlogs[MAX_FDS]; /* by fd */
static char buffer[BUFFER];
static int poller;

static void drop(int fd)
{
	free(backlogs[fd].bytes);
	backlogs[fd] = (struct backlog){0};
	close(fd); /* which takes it out of the epoll too */
}

/* keep puts aside what the socket had no room for. */
static void keep(int fd, const char *bytes, size_t n)
{
	struct backlog *b = &backlogs[fd];
	b->bytes = malloc(n);
	must(b->bytes != NULL, "malloc");
	memcpy(b->bytes, bytes, n);
	b->at = 0;
	b->end = n;
}

/* flush returns 1 when nothing is left, 0 when the socket is full again, -1 when the client is gone. */
static int flush(int fd)
{
	struct backlog *b = &backlogs[fd];
	while (b->at < b->end) {
		ssize_t n = send(fd, b->bytes + b->at, b->end - b->at, MSG_NOSIGNAL);
		if (n < 0)
			return errno == EAGAIN ? 0 : -1;
		b->at += n;
	}
	free(b->bytes);
	*b = (struct backlog){0};
	return 1;
}

static void serve(int fd, int ends)
{
	/* While there is a backlog nothing is read: a client that does not read is not heard. */
	if (backlogs[fd].bytes != NULL) {
		int left = flush(fd);
		if (left < 0)
			drop(fd);
		if (left <= 0)
			return;
	}
	for (;;) {
		ssize_t in = recv(fd, buffer, BUFFER, 0);
		if (in < 0 && errno == EAGAIN)
			return;
		if (in == 0)
			end_with_reset(fd);
		if (in <= 0) {
			drop(fd);
			return;
		}
		ssize_t out = send(fd, buffer, in, MSG_NOSIGNAL);
		if (out < 0 && errno != EAGAIN) {
			drop(fd);
			return;
		}
		if (out < in) {
			size_t sent = out < 0 ? 0 : out;
			keep(fd, buffer + sent, in - sent);
			return; /* the next edge is EPOLLOUT */
		}
		if (in < BUFFER && !ends)
			return; /* a short read: the socket is empty, and what comes next is a new edge; but an end that is there is none */
	}
}

static void welcome(int listener)
{
	for (;;) {
		int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC); /* TCP_NODELAY is the listener's */
		if (fd < 0)
			return; /* EAGAIN; or out of files, which a bench would notice */
		if (fd >= MAX_FDS) {
			close(fd);
			continue;
		}
		struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.fd = fd};
		if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e) < 0)
			close(fd);
	}
}

int main(void)
{
	int listener = listen_somewhere();

	poller = epoll_create1(EPOLL_CLOEXEC);
	must(poller >= 0, "epoll_create1");
	struct epoll_event e = {.events = EPOLLIN | EPOLLET, .data.fd = listener};
	must(epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e) == 0, "epoll_ctl");

	for (;;) {
		static struct epoll_event events[MAX_EVENTS];
		int n = epoll_wait(poller, events, MAX_EVENTS, -1);
		for (int i = 0; i < n; i++) {
			if (events[i].data.fd == listener)
				welcome(listener);
			else
				serve(events[i].data.fd, events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR));
		}
	}
}
