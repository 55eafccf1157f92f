/* State of the load client, and the report it answers each command with. */
#ifndef BENCH_CLIENT_STATE_H
#define BENCH_CLIENT_STATE_H

#include <netinet/in.h>
#include <sys/resource.h>

#include "histogram.h"
#include "sse_parser.h"

enum { CLOSED, CONNECTING, WAITING, READY, FAILED };

struct stream {
    int fd;
    uint8_t state, stalled;
    uint32_t events;   /* since the reset */
    uint64_t last_seq; /* 0: none yet */
    uint64_t started, read_at;
    struct parser parser;
};

static struct stream *streams;
static unsigned stream_count, sources, next_to_open, inflight, inflight_limit;
static char **paths;
static unsigned path_count;
static struct sockaddr_in server;
static const char *host;
static int poller, ready_on_connected;
static uint64_t clock_us, reset_at, longest_wait;
static struct {
    uint64_t events, bytes, gaps, duplicates, pings, resets, closings, recovered, retried, ended, broken;
} total;
static unsigned ready_count, failed_count, stalled_count;
static struct histogram latency, opening, closing, returning;
static char first_error[320];
static enum { NOTHING, OPENING, AWAITING } pending;
static uint64_t deadline, awaited, last_progress;

static void report(void) {
    uint32_t least = UINT32_MAX, most = 0;
    unsigned reading = 0;
    struct rusage used;
    for (unsigned i = 0; i < stream_count; i++) {
        if (streams[i].state != READY || streams[i].stalled) continue;
        reading++;
        if (streams[i].events < least) least = streams[i].events;
        if (streams[i].events > most) most = streams[i].events;
    }
    getrusage(RUSAGE_SELF, &used);
    printf("{\"ready\": %u, \"reading\": %u, \"failed\": %u, \"ended\": %llu, \"broken\": %llu, \"events\": %llu, "
           "\"fewest\": %u, \"most\": %u, \"gaps\": %llu, \"duplicates\": %llu, \"pings\": %llu, \"resets\": %llu, "
           "\"closings\": %llu, \"recovered\": %llu, \"retried\": %llu, \"bytes\": %llu, \"longest_wait_us\": %llu, "
           "\"cpu_s\": %.6f, \"error\": \"%s\", ",
           ready_count, reading, failed_count, (unsigned long long)total.ended, (unsigned long long)total.broken,
           (unsigned long long)total.events, reading ? least : 0, most, (unsigned long long)total.gaps,
           (unsigned long long)total.duplicates, (unsigned long long)total.pings, (unsigned long long)total.resets,
           (unsigned long long)total.closings, (unsigned long long)total.recovered, (unsigned long long)total.retried,
           (unsigned long long)total.bytes, (unsigned long long)longest_wait,
           (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
               (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6,
           first_error);
    histogram_print(&latency, "latency_us", stdout);
    printf(", ");
    histogram_print(&opening, "opening_us", stdout);
    printf(", ");
    histogram_print(&closing, "closing_us", stdout);
    printf(", ");
    histogram_print(&returning, "returning_us", stdout);
    printf("}\n");
    fflush(stdout);
    pending = NOTHING;
}

#endif
