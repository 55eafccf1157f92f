/* Epoll load client: holds N SSE streams, checks that each got every event once and in order, times them.
 *
 * client HOST PORT PATHS_FILE STREAMS SOURCES READY [FIRST_SOURCE FIRST_PATH]     (READY: "head" or "connected")
 *
 * Stream i asks for line FIRST_PATH + i of PATHS_FILE (wrapping around) from the address
 * 127.0.1.0 + 1 + FIRST_SOURCE + (i mod SOURCES), so that several clients can share one file and no address.
 * Commands come on stdin, one a line; each is answered with one line of JSON, the state at that moment:
 *   open INFLIGHT TIMEOUT_MS   connect all that are not, so many at a time (with their last event ids);
 *                              what gets no answer is tried again after STUCK_US, and counted
 *   return INFLIGHT TIMEOUT_MS the same, and what fails is tried again too, after RETRY_US, and counted as refused
 *   wait EVENTS TIMEOUT_MS     until every reading stream has had so many events since the reset
 *   total EVENTS TIMEOUT_MS    until all streams together have had so many
 *   reset | stats | drop       zero the counters | report | close all streams
 *   stall I | unstall I        stop or resume reading stream I
 *   nap US | buckets ON        see below | whether reports have the histograms whole, for adding those of clients
 *
 * In a report, longest_wait_us is the longest time since the reset between two reads of a stream, silent_us the longest
 * time for which a stream has had nothing up to now, closing_us when the closing events came, and returning_us when
 * the clients would be back by their retry, both from the reset on.
 *
 * Once something arrived the client looks every NAP_US instead of sleeping in epoll_wait: else each send of the
 * server would pay for waking a thread of this machine, which no server does for clients elsewhere. So a
 * latency is up to NAP_US too long. After QUIET_US without anything it sleeps until it is woken. "nap" sets NAP_US:
 * a crowd of idle streams, where something comes all the time, is read in larger steps. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client_state.h"

#define NAP_US 500
#define QUIET_US 5000
#define STUCK_US 5000000
#define RETRY_US 100000

static uint64_t nap_us = NAP_US;

static void mark_ready(struct stream *s) {
    if (s->state != WAITING) return;
    s->state = READY;
    inflight--;
    ready_count++;
    last_progress = clock_us;
    histogram_add(&opening, clock_us - s->started);
}

static void on_event(struct parser *p, void *owner) {
    struct stream *s = owner;
    if (p->kind == KIND_DATA) {
        if (s->last_seq != 0 && p->seq != s->last_seq + 1) {
            if (p->seq <= s->last_seq) total.duplicates++;
            else total.gaps += p->seq - s->last_seq - 1;
        }
        s->last_seq = p->seq;
        s->events++;
        total.events++;
        histogram_add(&latency, clock_us > p->sent ? clock_us - p->sent : 0);
    } else if (p->kind == KIND_CONNECTED) {
        total.recovered += p->recovered;
        mark_ready(s);
    } else if (p->kind == KIND_PING) total.pings++;
    else if (p->kind == KIND_RESET) total.resets++;
    else if (p->kind == KIND_CLOSING) {
        total.closings++;
        histogram_add(&closing, clock_us - reset_at);
        histogram_add(&returning, clock_us - reset_at + p->retry * 1000);
    }
}

static void shut(struct stream *s, int outcome) {
    if (s->state == CONNECTING || s->state == WAITING) inflight--;
    if (s->state == READY) ready_count--;
    if (outcome == FAILED) failed_count++;
    s->state = (uint8_t)outcome;
    if (s->fd >= 0) close(s->fd);
    s->fd = -1;
    parser_reset(&s->parser);
}

static void fail(struct stream *s, const char *why, const char *text, size_t length) {
    if (first_error[0] == 0) {
        int used = snprintf(first_error, sizeof first_error, "%s ", why);
        for (size_t i = 0; i < length && used < (int)sizeof first_error - 1; i++)
            first_error[used++] = text[i] < ' ' || text[i] > '~' || text[i] == '"' || text[i] == '\\' ? ' ' : text[i];
    }
    shut(s, FAILED);
}

static void start(struct stream *s, unsigned index) {
    int one = 1;
    struct sockaddr_in local = {.sin_family = AF_INET};
    struct epoll_event ev = {.events = EPOLLOUT, .data.u32 = index + 1};
    local.sin_addr.s_addr = htonl(0x7f000101u + first_source + index % sources);
    parser_reset(&s->parser);
    s->started = now_us();
    s->state = CONNECTING;
    inflight++;
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (s->fd < 0) { fail(s, "socket", strerror(errno), strlen(strerror(errno))); return; }
    setsockopt(s->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (bind(s->fd, (struct sockaddr *)&local, sizeof local) < 0 ||
        (connect(s->fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS)) {
        fail(s, "connect", strerror(errno), strlen(strerror(errno)));
        return;
    }
    epoll_ctl(poller, EPOLL_CTL_ADD, s->fd, &ev);
}

static void send_request(struct stream *s, unsigned index) {
    char request[4096], resume[80] = "";
    const char *id = s->parser.id[s->parser.id_slot];
    if (id[0]) snprintf(resume, sizeof resume, "Last-Event-ID: %s\r\n", id);
    const char *path = path_file + path_at[index % path_count];
    int path_length = (int)strcspn(path, "\n");
    int length = snprintf(request, sizeof request, "GET %.*s HTTP/1.1\r\nHost: %s:%u\r\nAccept: text/event-stream\r\n%s\r\n",
                          path_length, path, host, ntohs(server.sin_port), resume);
    struct epoll_event ev = {.events = EPOLLIN, .data.u32 = index + 1};
    if (length >= (int)sizeof request) { fail(s, "path too long", "", 0); return; }
    if (send(s->fd, request, (size_t)length, MSG_NOSIGNAL) != length) {
        fail(s, "send", strerror(errno), strlen(strerror(errno)));
        return;
    }
    s->state = WAITING;
    epoll_ctl(poller, EPOLL_CTL_MOD, s->fd, &ev);
}

static void read_stream(struct stream *s) {
    static char buffer[65536];
    ssize_t n = recv(s->fd, buffer, sizeof buffer, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        if (s->state == WAITING) { fail(s, "closed before it was ready", "", 0); return; }
        total.ended++;
        shut(s, CLOSED);
        return;
    }
    clock_us = now_us();
    if (s->state == READY && clock_us - s->read_at > longest_wait) longest_wait = clock_us - s->read_at;
    s->read_at = clock_us;
    total.bytes += (uint64_t)n;
    parser_feed(&s->parser, s, buffer, (size_t)n);
    if (s->parser.phase == IN_BODY && !ready_on_connected) mark_ready(s);
    if (s->parser.phase == ENDED && s->state == READY) { total.ended++; shut(s, CLOSED); }
    else if (s->parser.phase == BROKEN || s->parser.phase == ENDED) {
        total.broken += s->parser.status == 200;
        fail(s, "answered", buffer, (size_t)n);
    }
}

static void obey(char *line) {
    unsigned long a = 0, b = 0;
    char word[16] = "";
    sscanf(line, "%15s %lu %lu", word, &a, &b);
    deadline = now_us() + b * 1000;
    if (strcmp(word, "open") == 0 || strcmp(word, "return") == 0) {
        persistent = word[0] == 'r';
        inflight_limit = (unsigned)a;
        next_to_open = failed_count = 0;
        last_progress = now_us();
        first_error[0] = 0;
        histogram_clear(&opening);
        pending = OPENING;
    } else if (strcmp(word, "wait") == 0) {
        awaited = a * (ready_count - stalled_count);
        pending = AWAITING;
    } else if (strcmp(word, "total") == 0) {
        awaited = a;
        pending = AWAITING;
    } else {
        if (strcmp(word, "reset") == 0) {
            memset(&total, 0, sizeof total);
            histogram_clear(&latency);
            histogram_clear(&closing);
            histogram_clear(&returning);
            reset_at = now_us();
            longest_wait = 0;
            for (unsigned i = 0; i < stream_count; i++) streams[i].events = 0, streams[i].read_at = reset_at;
        } else if (strcmp(word, "drop") == 0) {
            for (unsigned i = 0; i < stream_count; i++) shut(&streams[i], CLOSED);
        } else if ((strcmp(word, "stall") == 0 || strcmp(word, "unstall") == 0) && a < stream_count) {
            struct stream *s = &streams[a];
            struct epoll_event ev = {.events = EPOLLIN, .data.u32 = (uint32_t)a + 1};
            s->stalled = word[0] == 's';
            stalled_count += s->stalled ? 1u : -1u;
            int room = s->stalled ? 4096 : 1 << 20;
            if (s->fd >= 0) setsockopt(s->fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
            if (s->fd >= 0) epoll_ctl(poller, s->stalled ? EPOLL_CTL_DEL : EPOLL_CTL_ADD, s->fd, &ev);
        } else if (strcmp(word, "nap") == 0) nap_us = a;
        else if (strcmp(word, "buckets") == 0) with_buckets = a != 0;
        report();
    }
}

/* Streams that have waited for an answer while no stream got one are closed and opened again, and counted. */
static void reopen_stuck(void) {
    for (unsigned i = 0; i < stream_count; i++) {
        if (streams[i].state != CONNECTING && streams[i].state != WAITING) continue;
        shut(&streams[i], CLOSED);
        total.retried++;
    }
    next_to_open = 0;
    last_progress = now_us();
}

/* When all have been tried and some have failed, or were ended meanwhile, those are tried again, after a pause. */
static void open_refused(void) {
    total.refused += failed_count;
    failed_count = next_to_open = 0;
    retry_at = now_us() + RETRY_US;
}

static void advance(void) {
    if (pending == OPENING && now_us() - last_progress > STUCK_US) reopen_stuck();
    if (pending == OPENING && persistent && next_to_open == stream_count && inflight == 0 && ready_count < stream_count) open_refused();
    if (pending == OPENING && now_us() < retry_at && now_us() < deadline) return;
    while (pending == OPENING && next_to_open < stream_count && inflight < inflight_limit) {
        if (streams[next_to_open].fd < 0) start(&streams[next_to_open], next_to_open);
        next_to_open++;
    }
    int done = pending == OPENING && next_to_open == stream_count && inflight == 0;
    done |= pending == AWAITING && total.events >= awaited;
    if (pending == NOTHING || !(done || now_us() >= deadline)) return;
    if (pending == OPENING) madvise((void *)path_file, path_file_size, MADV_DONTNEED);
    report();
}

/* The file stays where it is: of its pages only those in use are in this process's memory. */
static void map_paths(const char *name) {
    struct stat about;
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &about) < 0) { perror(name); exit(2); }
    path_file_size = (size_t)about.st_size;
    path_file = mmap(NULL, path_file_size, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (path_file == MAP_FAILED || path_file[path_file_size - 1] != '\n') { perror(name); exit(2); }
    const char *end = path_file + path_file_size;
    unsigned lines = 0, line = 0;
    for (const char *at = path_file; at < end; at = strchr(at, '\n') + 1) lines++;
    path_count = lines < stream_count ? lines : stream_count;
    path_at = malloc(path_count * sizeof *path_at);
    if (path_at == NULL || path_file_size > UINT32_MAX) abort();
    for (const char *at = path_file; at < end; at = strchr(at, '\n') + 1, line++) {
        unsigned index = (line + lines - first_path % lines) % lines;
        if (index < path_count) path_at[index] = (uint32_t)(at - path_file);
    }
}

int main(int argc, char **argv) {
    static char input[256];
    size_t filled = 0;
    struct epoll_event events[512], ev = {.events = EPOLLIN, .data.u32 = 0};
    if (argc != 7 && argc != 9) {
        fprintf(stderr, "usage: client HOST PORT PATHS_FILE STREAMS SOURCES READY [FIRST_SOURCE FIRST_PATH]\n");
        return 2;
    }
    host = argv[1];
    server.sin_family = AF_INET;
    server.sin_port = htons((uint16_t)atoi(argv[2]));
    inet_pton(AF_INET, host, &server.sin_addr);
    stream_count = (unsigned)atoi(argv[4]);
    sources = (unsigned)atoi(argv[5]);
    ready_on_connected = strcmp(argv[6], "connected") == 0;
    first_source = argc == 9 ? (unsigned)atoi(argv[7]) : 0;
    first_path = argc == 9 ? (unsigned)atoi(argv[8]) : 0;
    map_paths(argv[3]);
    streams = calloc(stream_count, sizeof *streams);
    if (streams == NULL || sources == 0 || sources > 200) return 2;
    for (unsigned i = 0; i < stream_count; i++) streams[i].fd = -1;
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_ctl(poller, EPOLL_CTL_ADD, 0, &ev) < 0) { perror("stdin must be a pipe"); return 2; }
    prctl(PR_SET_TIMERSLACK, 1000);
    for (uint64_t busy = 0;;) {
        int napping = now_us() - busy < QUIET_US;
        int n = epoll_wait(poller, events, 512, napping ? 0 : pending == NOTHING ? -1 : 20);
        if (n > 0) busy = now_us();
        else if (napping) usleep((useconds_t)nap_us);
        for (int i = 0; i < n; i++) {
            if (events[i].data.u32 == 0) {
                ssize_t got = read(0, input + filled, sizeof input - 1 - filled);
                if (got <= 0) return 0;
                filled += (size_t)got;
                input[filled] = 0;
                char *end = strchr(input, '\n');
                if (end != NULL) { *end = 0; filled = 0; obey(input); }
                continue;
            }
            unsigned index = events[i].data.u32 - 1;
            struct stream *s = &streams[index];
            if (s->fd < 0 || s->stalled) continue;
            if (s->state == CONNECTING) send_request(s, index);
            else read_stream(s);
        }
        advance();
    }
}
