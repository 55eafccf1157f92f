/* Incremental reader of one SSE response: HTTP head, chunked framing split anywhere, lines, events. */
#ifndef BENCH_SSE_PARSER_H
#define BENCH_SSE_PARSER_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define ID_SIZE 48
#define SEQ_BASE 1000000000ull        /* the publisher's numbers have a fixed width: it adds these */
#define SENT_BASE 1000000000000000ull

enum phase { IN_HEAD, IN_BODY, ENDED, BROKEN };
enum chunk_state { CHUNK_SIZE, CHUNK_DATA, CHUNK_END };
enum event_kind { KIND_OTHER, KIND_DATA, KIND_CONNECTED, KIND_PING, KIND_RESET, KIND_CLOSING };

struct parser {
    uint8_t phase, chunked, chunk_state, kind;
    uint8_t id_slot, has_id, has_fields, recovered;
    uint16_t status;
    uint32_t chunk_left;
    uint32_t carry_length;
    char *carry; /* an unfinished line (or head), only while there is one */
    uint64_t seq, sent, retry;
    char id[2][ID_SIZE]; /* id[id_slot]: the last event id; the other one belongs to the event being read */
};

/* Called at the blank line that ends an event, with parser->kind, and seq and sent or retry set. */
static void on_event(struct parser *p, void *owner);

static inline void parser_reset(struct parser *p) {
    free(p->carry);
    p->carry = NULL;
    p->carry_length = 0;
    p->phase = IN_HEAD;
    p->chunked = p->has_id = p->has_fields = p->recovered = 0;
    p->chunk_state = CHUNK_SIZE;
    p->kind = KIND_OTHER;
    p->status = 0;
    p->chunk_left = 0;
}

static inline void keep(struct parser *p, const char *data, size_t length) {
    char *grown = realloc(p->carry, p->carry_length + length + 1);
    if (grown == NULL) abort();
    memcpy(grown + p->carry_length, data, length);
    p->carry = grown;
    p->carry_length += (uint32_t)length;
    p->carry[p->carry_length] = 0;
}

static inline void let_go(struct parser *p) {
    free(p->carry);
    p->carry = NULL;
    p->carry_length = 0;
}

/* The whole number after "name": in a line of JSON; 0 where it is not. */
static inline uint64_t number_after(const char *line, size_t length, const char *name, size_t name_length) {
    const char *at = memmem(line, length, name, name_length), *end = line + length;
    if (at == NULL) return 0;
    at += name_length;
    while (at < end && *at == ' ') at++;
    uint64_t value = 0;
    while (at < end && *at >= '0' && *at <= '9') value = value * 10 + (uint64_t)(*at++ - '0');
    return value;
}

static inline int starts(const char *line, size_t length, const char *word, size_t word_length) {
    return length >= word_length && memcmp(line, word, word_length) == 0;
}
#define STARTS(line, length, word) starts(line, length, word, sizeof word - 1)

static inline void take_line(struct parser *p, void *owner, const char *line, size_t length) {
    if (length && line[length - 1] == '\r') length--;
    if (length == 0) {
        if (p->has_fields) {
            if (p->has_id) p->id_slot ^= 1;
            on_event(p, owner);
        }
        p->has_id = p->has_fields = 0;
        p->kind = KIND_OTHER;
        return;
    }
    const char *value = memchr(line, ':', length);
    if (value == NULL || value == line) return; /* a comment, or a field without a value */
    value++;
    if (value < line + length && *value == ' ') value++;
    size_t value_length = (size_t)(line + length - value);
    if (STARTS(line, length, "data:")) {
        p->has_fields = 1;
        if (p->kind == KIND_CONNECTED) {
            p->recovered = memmem(value, value_length, "\"recovered\":true", 16) != NULL ||
                           memmem(value, value_length, "\"recovered\": true", 17) != NULL;
        } else if (p->kind <= KIND_DATA) {
            uint64_t seq = number_after(value, value_length, "\"seq\":", 6);
            if (seq >= SEQ_BASE) {
                p->kind = KIND_DATA;
                p->seq = seq - SEQ_BASE;
                p->sent = number_after(value, value_length, "\"sent\":", 7) - SENT_BASE;
            }
        } else if (p->kind == KIND_CLOSING) {
            p->retry = number_after(value, value_length, "\"retry\":", 8);
        }
    } else if (STARTS(line, length, "id:")) {
        char *slot = p->id[p->id_slot ^ 1];
        size_t kept = value_length < ID_SIZE - 1 ? value_length : ID_SIZE - 1;
        memcpy(slot, value, kept);
        slot[kept] = 0;
        p->has_id = 1;
    } else if (STARTS(line, length, "event:")) {
        if (STARTS(value, value_length, "connected")) p->kind = KIND_CONNECTED;
        else if (STARTS(value, value_length, "ping")) p->kind = KIND_PING;
        else if (STARTS(value, value_length, "reset")) p->kind = KIND_RESET;
        else if (STARTS(value, value_length, "closing")) p->kind = KIND_CLOSING;
    }
}

static inline void take_text(struct parser *p, void *owner, const char *data, size_t length) {
    while (length) {
        const char *end = memchr(data, '\n', length);
        if (end == NULL) {
            keep(p, data, length);
            return;
        }
        size_t line = (size_t)(end - data);
        if (p->carry_length) {
            keep(p, data, line);
            take_line(p, owner, p->carry, p->carry_length);
            let_go(p);
        } else {
            take_line(p, owner, data, line);
        }
        data = end + 1;
        length -= line + 1;
    }
}

static inline void take_chunks(struct parser *p, void *owner, const char *data, size_t length) {
    while (length && p->phase == IN_BODY) {
        if (p->chunk_state == CHUNK_DATA) {
            size_t part = length < p->chunk_left ? length : p->chunk_left;
            take_text(p, owner, data, part);
            data += part;
            length -= part;
            p->chunk_left -= (uint32_t)part;
            if (p->chunk_left == 0) p->chunk_state = CHUNK_END;
            continue;
        }
        char c = *data++;
        length--;
        if (p->chunk_state == CHUNK_END) {
            if (c == '\n') p->chunk_state = CHUNK_SIZE;
            else if (c != '\r') p->phase = BROKEN;
        } else if (c == '\n') {
            if (p->chunk_left == 0) p->phase = ENDED;
            p->chunk_state = CHUNK_DATA;
        } else if (c != '\r') {
            int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
            if (digit < 0 || p->chunk_left > 0xfffffff) p->phase = BROKEN;
            else p->chunk_left = p->chunk_left * 16 + (uint32_t)digit;
        }
    }
}

/* Take what a read returned. parser->phase says afterwards whether there is more of the response. */
static inline void parser_feed(struct parser *p, void *owner, const char *data, size_t length) {
    if (p->phase == IN_HEAD) {
        size_t before = p->carry_length;
        keep(p, data, length);
        char *end = strstr(p->carry, "\r\n\r\n");
        if (end == NULL) return;
        *end = 0;
        size_t used = (size_t)(end + 4 - p->carry) - before;
        if (strncmp(p->carry, "HTTP/1.", 7) == 0) p->status = (uint16_t)atoi(p->carry + 9);
        p->chunked = strcasestr(p->carry, "transfer-encoding: chunked") != NULL;
        p->phase = p->status == 200 ? IN_BODY : BROKEN;
        let_go(p);
        data += used;
        length -= used;
    }
    if (p->phase != IN_BODY) return;
    if (p->chunked) take_chunks(p, owner, data, length);
    else take_text(p, owner, data, length);
}

#endif
