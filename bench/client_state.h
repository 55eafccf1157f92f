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
static unsigned stream_count, sources, first_source, next_to_open, inflight, inflight_limit;
static const char *path_file; /* mapped; path_at has where its lines begin */
static size_t path_file_size;
static uint32_t *path_at;
static unsigned path_count, first_path; /* how many lines are in use, and the first of them */
static struct sockaddr_in server;
static const char *host;
static int poller, ready_on_connected;
static uint64_t clock_us, reset_at, longest_wait;
static struct {
    uint64_t events, bytes, gaps, duplicates, pings, resets, closings, recovered, retried, refused, ended, broken;
} total;
static unsigned ready_count, failed_count, stalled_count;
static struct histogram latency, opening, closing, returning;
static const struct {
    const char *name;
    struct histogram *of;
} histograms[] = {{"latency_us", &latency}, {"opening_us", &opening}, {"closing_us", &closing}, {"returning_us", &returning}};
static char first_error[320];
static enum { NOTHING, OPENING, AWAITING } pending;
static int persistent, with_buckets;
static uint64_t deadline, awaited, last_progress, retry_at;

static void report(void) {
    uint32_t least = UINT32_MAX, most = 0;
    uint64_t silent = 0, now = now_us();
    unsigned reading = 0;
    struct rusage used;
    for (unsigned i = 0; i < stream_count; i++) {
        if (streams[i].state != READY || streams[i].stalled) continue;
        reading++;
        if (now - streams[i].read_at > silent) silent = now - streams[i].read_at;
        if (streams[i].events < least) least = streams[i].events;
        if (streams[i].events > most) most = streams[i].events;
    }
    getrusage(RUSAGE_SELF, &used);
    printf("{\"ready\": %u, \"reading\": %u, \"failed\": %u, \"ended\": %llu, \"broken\": %llu, \"events\": %llu, "
           "\"fewest\": %u, \"most\": %u, \"gaps\": %llu, \"duplicates\": %llu, \"pings\": %llu, \"resets\": %llu, "
           "\"closings\": %llu, \"recovered\": %llu, \"retried\": %llu, \"refused\": %llu, \"bytes\": %llu, "
           "\"longest_wait_us\": %llu, \"silent_us\": %llu, \"cpu_s\": %.6f, \"error\": \"%s\", ",
           ready_count, reading, failed_count, (unsigned long long)total.ended, (unsigned long long)total.broken,
           (unsigned long long)total.events, reading ? least : 0, most, (unsigned long long)total.gaps,
           (unsigned long long)total.duplicates, (unsigned long long)total.pings, (unsigned long long)total.resets,
           (unsigned long long)total.closings, (unsigned long long)total.recovered, (unsigned long long)total.retried,
           (unsigned long long)total.refused, (unsigned long long)total.bytes, (unsigned long long)longest_wait,
           (unsigned long long)silent,
           (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
               (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6,
           first_error);
    for (unsigned i = 0; i < sizeof histograms / sizeof *histograms; i++) {
        if (i) printf(", ");
        histogram_print(histograms[i].of, histograms[i].name, stdout);
        if (!with_buckets) continue;
        printf(", \"%s_buckets\": ", histograms[i].name);
        histogram_print_buckets(histograms[i].of, stdout);
    }
    printf("}\n");
    fflush(stdout);
    pending = NOTHING;
}

#endif
