/* HTTP request load: publishes (or asks for) so many requests, at a rate or as fast as answers return.
 *
 * publisher --host H --port P --paths FILE --count N [--rate PER_SECOND] [--connections C] [--method M]
 *           [--header 'Name: value']... [--prefix S --item S --separator S --suffix S --batch B] [--first SEQ]
 *           [--keys K]
 *
 * A body is prefix, B items with the separator between, suffix. In an item {SEQ} becomes a 10-digit number,
 * {SENT} the microsecond it is sent at, 16 digits (CLOCK_MONOTONIC), and {KEY} one of K keys of 4 digits, which the
 * items have in turn, so every body has the same length. Request i
 * goes to line i of the paths, wrapping around, and numbers count up for each path on its own. With a rate, an
 * answer is timed from the moment the request was due, so a server that stalls cannot hide it. One line of JSON. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "histogram.h"

#define SEQ_BASE 1000000000ull
#define SENT_BASE 1000000000000000ull
#define MAX_CONNECTIONS 1024
#define ANSWER_SIZE 65536
#define GIVE_UP_US 30000000ull

enum { CLOSED, CONNECTING, IDLE, SENDING, AWAITING };

struct connection {
    int fd, state;
    uint64_t due, request;
    char *out;
    size_t out_length, out_sent, answer_length;
    char answer[ANSWER_SIZE];
};

static struct connection *connections[MAX_CONNECTIONS];
static unsigned connection_count = 1;
static const char *host = "127.0.0.1", *method = "POST", *prefix = "", *item = "", *separator = "", *suffix = "";
static char headers[4096];
static struct sockaddr_in server;
static char **paths;
static unsigned path_count;
static uint64_t count = 1, first_seq = 1, batch = 1, keys = 1, issued, finished, errors, began, last_answer;
static double rate;
static char *body, *item_text;
static size_t body_length, item_length, seq_at, sent_at, key_at;
static int has_seq, has_sent, has_key;
static uint64_t statuses[600];
static struct histogram latency;
static char first_error[320];

static void note_error(const char *text, size_t length) {
    int used = 0;
    if (first_error[0]) return;
    for (size_t i = 0; i < length && used < (int)sizeof first_error - 1; i++)
        first_error[used++] = text[i] < ' ' || text[i] > '~' || text[i] == '"' || text[i] == '\\' ? ' ' : text[i];
}

/* The item with room for its numbers, and where they go. */
static void prepare_item(void) {
    item_text = calloc(1, strlen(item) + 64);
    if (item_text == NULL) abort();
    for (const char *at = item; *at;) {
        if (strncmp(at, "{SEQ}", 5) == 0) {
            seq_at = item_length, has_seq = 1, at += 5;
            item_length += 10;
        } else if (strncmp(at, "{SENT}", 6) == 0) {
            sent_at = item_length, has_sent = 1, at += 6;
            item_length += 16;
        } else if (strncmp(at, "{KEY}", 5) == 0) {
            key_at = item_length, has_key = 1, at += 5;
            item_length += 4;
        } else item_text[item_length++] = *at++;
    }
    body_length = strlen(prefix) + batch * item_length + (batch - 1) * strlen(separator) + strlen(suffix);
    if (item_length == 0) body_length = strlen(prefix) + strlen(suffix);
    body = malloc(body_length + 1);
    if (body == NULL) abort();
}

static void digits(char *to, uint64_t value, int width) {
    while (width--) to[width] = (char)('0' + value % 10), value /= 10;
}

static void render(struct connection *c) {
    char *at = body, head[8192];
    const char *path = paths[c->request % path_count];
    uint64_t seq = SEQ_BASE + first_seq + c->request / path_count * batch, sent = SENT_BASE + now_us();
    at = mempcpy(at, prefix, strlen(prefix));
    for (uint64_t i = 0; i < batch && item_length; i++) {
        if (i) at = mempcpy(at, separator, strlen(separator));
        memcpy(at, item_text, item_length);
        if (has_seq) digits(at + seq_at, seq + i, 10);
        if (has_sent) digits(at + sent_at, sent, 16);
        if (has_key) digits(at + key_at, (seq + i - SEQ_BASE) % keys, 4);
        at += item_length;
    }
    memcpy(at, suffix, strlen(suffix));
    int head_length = snprintf(head, sizeof head, "%s %s HTTP/1.1\r\nHost: %s:%u\r\n%s", method, path, host,
                               ntohs(server.sin_port), headers);
    if (body_length) head_length += snprintf(head + head_length, 64, "Content-Length: %zu\r\n", body_length);
    head_length += snprintf(head + head_length, 4, "\r\n");
    if (c->out == NULL && (c->out = malloc(sizeof head + body_length)) == NULL) abort();
    memcpy(c->out, head, (size_t)head_length);
    memcpy(c->out + head_length, body, body_length);
    c->out_length = (size_t)head_length + body_length;
    c->out_sent = c->answer_length = 0;
}

static void hang_up(struct connection *c) {
    if (c->state == SENDING || c->state == AWAITING) errors++, finished++;
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    c->state = CLOSED;
}

static void push(struct connection *c) {
    ssize_t n = send(c->fd, c->out + c->out_sent, c->out_length - c->out_sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN) return;
    if (n < 0) { note_error(strerror(errno), strlen(strerror(errno))); hang_up(c); return; }
    c->out_sent += (size_t)n;
    if (c->out_sent == c->out_length) c->state = AWAITING;
}

static void dial(struct connection *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->state = CONNECTING;
    if (connect(c->fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS) {
        perror("connect");
        exit(1);
    }
}

static int answer_complete(struct connection *c, int at_end) {
    c->answer[c->answer_length] = 0;
    char *end = strstr(c->answer, "\r\n\r\n"), *field;
    if (end == NULL) return 0;
    size_t got = c->answer_length - (size_t)(end + 4 - c->answer);
    *end = 0;
    field = strcasestr(c->answer, "\r\ncontent-length:");
    int chunked = strcasestr(c->answer, "\r\ntransfer-encoding: chunked") != NULL;
    *end = '\r';
    if (field) return got >= strtoul(field + 17, NULL, 10);
    if (chunked) return got >= 5 && memcmp(c->answer + c->answer_length - 5, "0\r\n\r\n", 5) == 0;
    return at_end || atoi(c->answer + 9) == 204;
}

static void take_answer(struct connection *c) {
    ssize_t n = recv(c->fd, c->answer + c->answer_length, ANSWER_SIZE - 1 - c->answer_length, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n > 0) c->answer_length += (size_t)n;
    if (c->state == AWAITING && answer_complete(c, n <= 0)) {
        int status = atoi(c->answer + 9);
        statuses[status > 0 && status < 600 ? status : 0]++;
        if (status >= 300) note_error(c->answer, c->answer_length);
        last_answer = now_us();
        histogram_add(&latency, last_answer - c->due);
        finished++;
        c->state = IDLE;
        if (strcasestr(c->answer, "\r\nconnection: close")) n = 0;
    }
    if (n <= 0 || c->answer_length == ANSWER_SIZE - 1) {
        if (c->state != IDLE) note_error("connection closed before the answer", 35);
        hang_up(c);
    }
}

/* Give the next request to an idle connection if one is due. */
static void issue(struct connection *c) {
    uint64_t now = now_us();
    if (issued == count || c->state != IDLE) return;
    uint64_t due = rate > 0 ? began + (uint64_t)((double)issued * 1e6 / rate) : now;
    if (due > now) return;
    c->due = due;
    c->request = issued++;
    render(c);
    c->state = SENDING;
    push(c);
}

static void run(void) {
    struct pollfd polled[MAX_CONNECTIONS];
    began = last_answer = now_us();
    while (finished < count) {
        uint64_t now = now_us(), next = now + 100000;
        for (unsigned i = 0; i < connection_count; i++) {
            struct connection *c = connections[i];
            if (c->state == CLOSED && issued < count) dial(c);
            issue(c);
            polled[i] = (struct pollfd){.fd = c->fd, .events = POLLIN};
            if (c->state == CONNECTING || c->state == SENDING) polled[i].events |= POLLOUT;
        }
        if (rate > 0 && issued < count) {
            uint64_t due = began + (uint64_t)((double)issued * 1e6 / rate);
            if (due < next) next = due > now ? due : now + 200;
        }
        struct timespec wait = {.tv_sec = 0, .tv_nsec = (long)(next - now) * 1000};
        ppoll(polled, connection_count, &wait, NULL);
        for (unsigned i = 0; i < connection_count; i++) {
            struct connection *c = connections[i];
            if (polled[i].revents == 0 || c->fd < 0) continue;
            if (c->state == CONNECTING) {
                int error = 0;
                socklen_t size = sizeof error;
                getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
                if (error) { fprintf(stderr, "connect: %s\n", strerror(error)); exit(1); }
                c->state = IDLE;
            } else if (c->state == SENDING && polled[i].revents & POLLOUT) push(c);
            else take_answer(c);
        }
        if (issued && now_us() - last_answer > GIVE_UP_US + (rate > 0 ? (uint64_t)(1e6 / rate) : 0)) {
            note_error("no answer for 30 s", 18);
            break;
        }
    }
}

static void report(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    printf("{\"requests\": %llu, \"finished\": %llu, \"errors\": %llu, \"wall_s\": %.6f, \"cpu_s\": %.6f, \"error\": \"%s\", "
           "\"statuses\": {", (unsigned long long)issued, (unsigned long long)finished, (unsigned long long)errors,
           (double)(last_answer - began) / 1e6,
           (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
               (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6, first_error);
    const char *comma = "";
    for (int i = 0; i < 600; i++) {
        if (statuses[i] == 0) continue;
        printf("%s\"%d\": %llu", comma, i, (unsigned long long)statuses[i]);
        comma = ", ";
    }
    printf("}, ");
    histogram_print(&latency, "answer_us", stdout);
    printf("}\n");
}

static void read_paths(const char *name) {
    char line[4096];
    FILE *file = fopen(name, "r");
    if (file == NULL) { perror(name); exit(2); }
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\r\n")] = 0;
        paths = realloc(paths, (path_count + 1) * sizeof *paths);
        if (paths == NULL || (paths[path_count++] = strdup(line)) == NULL) abort();
    }
    fclose(file);
}

int main(int argc, char **argv) {
    static const struct option options[] = {
        {"host", 1, 0, 'h'}, {"port", 1, 0, 'p'}, {"paths", 1, 0, 'f'}, {"count", 1, 0, 'n'}, {"rate", 1, 0, 'r'},
        {"connections", 1, 0, 'c'}, {"method", 1, 0, 'm'}, {"header", 1, 0, 'H'}, {"prefix", 1, 0, 'a'},
        {"item", 1, 0, 'i'}, {"separator", 1, 0, 's'}, {"suffix", 1, 0, 'z'}, {"batch", 1, 0, 'b'},
        {"first", 1, 0, 'q'}, {"keys", 1, 0, 'k'}, {0, 0, 0, 0}};
    server.sin_family = AF_INET;
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (o == 'h') host = optarg;
        else if (o == 'p') server.sin_port = htons((uint16_t)atoi(optarg));
        else if (o == 'f') read_paths(optarg);
        else if (o == 'n') count = strtoull(optarg, NULL, 10);
        else if (o == 'r') rate = atof(optarg);
        else if (o == 'c') connection_count = (unsigned)atoi(optarg);
        else if (o == 'm') method = optarg;
        else if (o == 'H') snprintf(headers + strlen(headers), sizeof headers - strlen(headers), "%s\r\n", optarg);
        else if (o == 'a') prefix = optarg;
        else if (o == 'i') item = optarg;
        else if (o == 's') separator = optarg;
        else if (o == 'z') suffix = optarg;
        else if (o == 'b') batch = strtoull(optarg, NULL, 10);
        else if (o == 'q') first_seq = strtoull(optarg, NULL, 10);
        else if (o == 'k') keys = strtoull(optarg, NULL, 10);
        else return 2;
    }
    if (path_count == 0 || connection_count == 0 || connection_count > MAX_CONNECTIONS || batch == 0 || keys == 0) return 2;
    inet_pton(AF_INET, host, &server.sin_addr);
    signal(SIGPIPE, SIG_IGN);
    prepare_item();
    for (unsigned i = 0; i < connection_count; i++) {
        connections[i] = calloc(1, sizeof *connections[i]);
        if (connections[i] == NULL) abort();
        connections[i]->fd = -1;
    }
    run();
    report();
    return 0;
}
