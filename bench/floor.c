/* The floor: what a fan-out costs in bare C. It accepts streams and sends each publish to all of them.
 *
 * floor STREAM_PORT PUBLISH_PORT
 *
 * Requests of streams are never read: each gets a fixed response head when it is accepted. A publish is an HTTP
 * POST on the other port, of which only Content-Length is looked at; its body goes to every stream as it is. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_STREAMS 20000
#define BODY_SIZE (4 << 20)

static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
                           "Transfer-Encoding: chunked\r\n\r\n";
static const char answer[] = "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n";
static int streams[MAX_STREAMS];
static unsigned stream_count;

static int listen_on(const char *port) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 4096) < 0) {
        perror(port);
        exit(1);
    }
    return fd;
}

static void fan_out(const char *bytes, size_t length) {
    unsigned kept = 0;
    for (unsigned i = 0; i < stream_count; i++) {
        if (send(streams[i], bytes, length, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)length) streams[kept++] = streams[i];
        else close(streams[i]); /* gone, or too slow: the floor buffers nothing */
    }
    stream_count = kept;
}

/* One publisher at a time, served until it hangs up or has nothing more to say for now. */
static size_t take_publishes(int fd, char *buffer, size_t filled) {
    ssize_t n = recv(fd, buffer + filled, BODY_SIZE - 1 - filled, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return filled;
    if (n <= 0) {
        close(fd);
        return 0;
    }
    filled += (size_t)n;
    for (;;) {
        buffer[filled] = 0;
        char *end = strstr(buffer, "\r\n\r\n"), *field = strcasestr(buffer, "content-length:");
        if (end == NULL || field == NULL) return filled;
        size_t length = strtoul(field + 15, NULL, 10), whole = (size_t)(end + 4 - buffer) + length;
        if (filled < whole) return filled;
        fan_out(end + 4, length);
        if (send(fd, answer, sizeof answer - 1, MSG_NOSIGNAL) < 0) return 0;
        memmove(buffer, buffer + whole, filled - whole);
        filled -= whole;
    }
}

int main(int argc, char **argv) {
    static char buffer[BODY_SIZE];
    size_t filled = 0;
    struct epoll_event events[64], ev = {.events = EPOLLIN};
    if (argc != 3) return 2;
    signal(SIGPIPE, SIG_IGN);
    int poller = epoll_create1(EPOLL_CLOEXEC), stream_port = listen_on(argv[1]), publish_port = listen_on(argv[2]);
    ev.data.fd = stream_port;
    epoll_ctl(poller, EPOLL_CTL_ADD, stream_port, &ev);
    ev.data.fd = publish_port;
    epoll_ctl(poller, EPOLL_CTL_ADD, publish_port, &ev);
    for (;;) {
        int n = epoll_wait(poller, events, 64, -1), fd, one = 1;
        for (int i = 0; i < n; i++) {
            if (events[i].data.fd == stream_port) {
                while ((fd = accept4(stream_port, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    if (stream_count < MAX_STREAMS && send(fd, head, sizeof head - 1, MSG_NOSIGNAL) > 0)
                        streams[stream_count++] = fd;
                    else close(fd);
                }
            } else if (events[i].data.fd == publish_port) {
                while ((fd = accept4(publish_port, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    ev.data.fd = fd;
                    filled = 0;
                    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &ev);
                }
            } else filled = take_publishes(events[i].data.fd, buffer, filled);
        }
    }
}
