/*
 * The server behind a proxy that moves bulk: it takes and gives as many bytes as it is told. A message begins with
 * two numbers of 32 bits, in network byte order: how many bytes follow them, and how many the answer has. What it
 * takes is dropped in the kernel and what it gives stays in the processor's cache, for it shares a core with the load,
 * and neither of them is what is measured. It gives with send, as servers do: sendfile would be cheaper, but hands out
 * single pages, which make every proxy that reads them slower.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "listen.h"

enum {
	MAX_FDS = 1 << 16,     /* far beyond what the bench opens */
	MAX_EVENTS = 1024,     /* of one epoll_wait */
	BUFFER = 256 << 10,    /* what it gives, over and over: fewer calls, and still in the cache */
};

/* Where a connection is in its message. */
struct transfer {
	char head[8];
	size_t headed, to_take, to_give;
};

static struct transfer transfers[MAX_FDS]; /* by fd */
static char buffer[BUFFER];

/* advance does the next part of a message, and returns what the system call did. */
static ssize_t advance(int fd, struct transfer *t)
{
	ssize_t n;
	if (t->to_take > 0) {
		n = recv(fd, NULL, t->to_take, MSG_TRUNC); /* which on TCP drops the bytes: tcp(7) */
		if (n > 0)
			t->to_take -= n;
		return n;
	}
	if (t->to_give > 0) {
		n = send(fd, buffer, t->to_give < BUFFER ? t->to_give : BUFFER, MSG_NOSIGNAL);
		if (n > 0)
			t->to_give -= n;
		return n;
	}
	n = recv(fd, t->head + t->headed, sizeof t->head - t->headed, 0);
	if (n > 0 && (t->headed += n) == sizeof t->head) {
		uint32_t numbers[2];
		memcpy(numbers, t->head, sizeof numbers);
		t->to_take = ntohl(numbers[0]);
		t->to_give = ntohl(numbers[1]);
		t->headed = 0;
	}
	return n;
}

static void serve(int fd)
{
	ssize_t n;
	do
		n = advance(fd, &transfers[fd]);
	while (n > 0);
	if (n < 0 && errno == EAGAIN)
		return;
	end_with_reset(fd);
	close(fd); /* which takes it out of the epoll too */
}

static void welcome(int poller, int listener)
{
	for (;;) {
		int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0)
			return; /* EAGAIN; or out of files, which a bench would notice */
		if (fd >= MAX_FDS) {
			close(fd);
			continue;
		}
		transfers[fd] = (struct transfer){0};
		struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.fd = fd};
		if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e) < 0)
			close(fd);
	}
}

int main(void)
{
	int listener = listen_somewhere();
	int poller = epoll_create1(EPOLL_CLOEXEC);
	must(poller >= 0, "epoll_create1");
	struct epoll_event e = {.events = EPOLLIN | EPOLLET, .data.fd = listener};
	must(epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e) == 0, "epoll_ctl");

	for (;;) {
		static struct epoll_event events[MAX_EVENTS];
		int n = epoll_wait(poller, events, MAX_EVENTS, -1);
		for (int i = 0; i < n; i++) {
			if (events[i].data.fd == listener)
				welcome(poller, listener);
			else
				serve(events[i].data.fd);
		}
	}
}
