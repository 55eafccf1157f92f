/* Log-linear histogram of microseconds: 128 steps for each power of two, so a percentile is right to 0.4 %. */
#ifndef BENCH_HISTOGRAM_H
#define BENCH_HISTOGRAM_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define HISTOGRAM_STEPS 128
#define HISTOGRAM_SIZE (2 * HISTOGRAM_STEPS + 33 * HISTOGRAM_STEPS)

struct histogram {
    uint64_t count, sum, max;
    uint32_t bucket[HISTOGRAM_SIZE];
};

static inline uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static inline void histogram_clear(struct histogram *h) { memset(h, 0, sizeof *h); }

static inline void histogram_add(struct histogram *h, uint64_t us) {
    unsigned index = (unsigned)us;
    if (us >= 2 * HISTOGRAM_STEPS) {
        unsigned shift = 63u - (unsigned)__builtin_clzll(us) - 7u;
        index = 2 * HISTOGRAM_STEPS + (shift - 1) * HISTOGRAM_STEPS + (unsigned)((us >> shift) - HISTOGRAM_STEPS);
        if (index >= HISTOGRAM_SIZE) index = HISTOGRAM_SIZE - 1;
    }
    h->bucket[index]++;
    h->count++;
    h->sum += us;
    if (us > h->max) h->max = us;
}

/* The middle of the bucket that holds the given share of all values; 0 when there are none. */
static inline double histogram_at(const struct histogram *h, double share) {
    uint64_t wanted = (uint64_t)(share * (double)h->count + 0.5), seen = 0;
    if (wanted < 1) wanted = 1;
    for (unsigned i = 0; i < HISTOGRAM_SIZE; i++) {
        seen += h->bucket[i];
        if (seen < wanted || h->bucket[i] == 0) continue;
        if (i < 2 * HISTOGRAM_STEPS) return i;
        unsigned shift = (i - 2 * HISTOGRAM_STEPS) / HISTOGRAM_STEPS + 1;
        uint64_t low = (uint64_t)((i - 2 * HISTOGRAM_STEPS) % HISTOGRAM_STEPS + HISTOGRAM_STEPS) << shift;
        double middle = (double)low + (double)(1ull << shift) / 2;
        return middle < (double)h->max ? middle : (double)h->max;
    }
    return 0;
}

static inline void histogram_print(const struct histogram *h, const char *name, FILE *out) {
    fprintf(out, "\"%s\": {\"count\": %llu, \"mean\": %.1f, \"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, "
                 "\"p999\": %.1f, \"max\": %llu}",
            name, (unsigned long long)h->count, h->count ? (double)h->sum / (double)h->count : 0.0,
            histogram_at(h, .5), histogram_at(h, .9), histogram_at(h, .99), histogram_at(h, .999),
            (unsigned long long)h->max);
}

/* What is counted, as [[bucket, count], ...]; histogram.py reads it. */
static inline void histogram_print_buckets(const struct histogram *h, FILE *out) {
    const char *comma = "";
    fprintf(out, "[");
    for (unsigned i = 0; i < HISTOGRAM_SIZE; i++) {
        if (h->bucket[i] == 0) continue;
        fprintf(out, "%s[%u, %u]", comma, i, h->bucket[i]);
        comma = ", ";
    }
    fprintf(out, "]");
}

#endif
