/* See attention.h.

   A "query" below is one query head of one row. For each KV head, the queries that share it walk its pages in
   order: scores of the page (32 dot products, each one chain over the channels), running maximum, powers, then
   the weighted values (each channel one chain over the tokens). Kernels differ in how many queries they take
   at once, never in what they do for one of them; multiply-adds are explicit, so that no compiler fuses them
   in one kernel and not in another. Sums across a page are made in SUM_LANES parts whatever the vectors'
   width: every CPU with fused multiply-add gets the same bits.
   Online softmax: Milakov and Gimelshein 2018, arXiv:1805.02867. */

#include "attention.h"

#include <math.h>
#include <string.h>

#include "attention_simd.h"
#include "kv_pages.h"

enum {
    TILE_QUERIES = 48,  /* their q, sums and scores stay in the first-level cache beside a page */
    WIDEN_QUERIES = 8,  /* from here on, a page is turned to float32 once instead of in each kernel */
    PAGE_VECTORS = SN_PAGE / LANES,
    SUM_LANES = 16,
    SUM_VECTORS = SUM_LANES / LANES,
};

#define LOG2_E 1.44269504088896340736f

/* ---------------------------------------------------------------------------------------- scratch memory */

typedef struct workspace {
    float *q;      /* [queries][head_dim], scaled */
    float *acc;    /* [queries][head_dim], sum of power * value */
    float *power;  /* [queries][SN_PAGE]: the page's scores, then their powers */
    float *lanes;  /* [queries][SUM_LANES], sum of powers: part i of tokens i, i + SUM_LANES, ... of each page */
    float *top;    /* [queries + LANES], largest score so far; the rest is there to be overwritten */
    float *fade;   /* [queries + LANES], what the sums so far are worth under the new largest score */
    float *keys;   /* [head_dim][SN_PAGE], the page in float32 */
    float *values; /* [SN_PAGE][head_dim] */
} workspace;

static int tile_queries(int group)
{
    return group > TILE_QUERIES ? group : TILE_QUERIES;
}

static int64_t padded(int64_t floats)
{
    return (floats + 15) / 16 * 16;
}

int64_t sn_attend_scratch(const sn_attention *attention)
{
    int64_t queries = tile_queries(attention->heads / attention->kv_heads), head_dim = attention->key_dim;
    return 16 + 2 * padded(queries * head_dim) + queries * (SN_PAGE + SUM_LANES) + 2 * padded(queries + LANES) +
           2 * (int64_t)head_dim * SN_PAGE;
}

static workspace lay_out(float *scratch, int queries, int head_dim)
{
    float *at = (float *)(((uintptr_t)scratch + 63) / 64 * 64);
    workspace w;
    w.q = at;
    w.acc = w.q + padded((int64_t)queries * head_dim);
    w.power = w.acc + padded((int64_t)queries * head_dim);
    w.lanes = w.power + (int64_t)queries * SN_PAGE;
    w.top = w.lanes + (int64_t)queries * SUM_LANES;
    w.fade = w.top + padded(queries + LANES);
    w.keys = w.fade + padded(queries + LANES);
    w.values = w.keys + (int64_t)head_dim * SN_PAGE;
    return w;
}

/* ---------------------------------------------------------------------------------------- widening */

INLINE void widen_as(const int dtype, const void *from, float *to, int64_t count)
{
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(to + i, widen(dtype, from, i));
    for (; i < count; i++) to[i] = widen_one(dtype, from, i);
}

static void widen_all(int dtype, const void *from, float *to, int64_t count)
{
    switch (dtype) {
    case SN_KV_FLOAT32: widen_as(SN_KV_FLOAT32, from, to, count); break;
    case SN_KV_BFLOAT16: widen_as(SN_KV_BFLOAT16, from, to, count); break;
    case SN_KV_FLOAT16: widen_as(SN_KV_FLOAT16, from, to, count); break;
    default: widen_as(SN_KV_INT8, from, to, count);
    }
}

/* ---------------------------------------------------------------------------------------- scores */

/* Scores of `queries` queries against the page's 32 tokens. Meanwhile asks for the line at `next` on. */
INLINE void scores_of(const int queries, const int dtype, const void *keys, const float *q, int head_dim, float *out,
                      const char *next)
{
    vfloat sum[SCORE_QUERIES][PAGE_VECTORS];
    UNROLL for (int i = 0; i < queries; i++)
        UNROLL for (int j = 0; j < PAGE_VECTORS; j++) sum[i][j] = splat(0.0f);
    for (int d = 0; d < head_dim; d++) {
        vfloat key[PAGE_VECTORS];
        UNROLL for (int j = 0; j < PAGE_VECTORS; j++) key[j] = widen(dtype, keys, (int64_t)d * SN_PAGE + j * LANES);
        UNROLL for (int i = 0; i < queries; i++) {
            vfloat channel = splat(q[(int64_t)i * head_dim + d]);
            UNROLL for (int j = 0; j < PAGE_VECTORS; j++) sum[i][j] = fmadd(channel, key[j], sum[i][j]);
        }
        if (next != NULL) {
            PREFETCH(next);
            next += dtype == SN_KV_FLOAT32 ? 128 : dtype == SN_KV_INT8 ? 32 : 64;
        }
    }
    UNROLL for (int i = 0; i < queries; i++)
        UNROLL for (int j = 0; j < PAGE_VECTORS; j++) store(out + i * SN_PAGE + j * LANES, sum[i][j]);
}

static void scores_stored(const int dtype, const void *keys, const float *q, int head_dim, int queries, float *out,
                          const char *next)
{
#define CASE(n, type)                                              \
    case 4 * n + type:                                             \
        scores_of(n, type, keys, q, head_dim, out, next);          \
        break;
#define CASES(n) CASE(n, 0) CASE(n, 1) CASE(n, 2) CASE(n, 3)
    for (int done = 0; done < queries;) {
        int n = queries - done < 4 ? queries - done : 4;
        switch (4 * n + dtype) { CASES(1) CASES(2) CASES(3) CASES(4) }
        done += n;
        q += (int64_t)n * head_dim;
        out += n * SN_PAGE;
        next = NULL;
    }
#undef CASES
#undef CASE
}

static void scores_float32(const float *keys, const float *q, int head_dim, int queries, float *out)
{
    for (; queries >= SCORE_QUERIES; queries -= SCORE_QUERIES) {
        scores_of(SCORE_QUERIES, SN_KV_FLOAT32, keys, q, head_dim, out, NULL);
        q += (int64_t)SCORE_QUERIES * head_dim;
        out += SCORE_QUERIES * SN_PAGE;
    }
    if (queries > 0) scores_stored(SN_KV_FLOAT32, keys, q, head_dim, queries, out, NULL);
}

/* ---------------------------------------------------------------------------------------- softmax */

/* Turns the page's scores (natural logarithms times log2 e) into powers of two relative to the largest score
   so far. `group` queries form a set; those of set i see visible[i] tokens of the page, at least one, and the
   token scales (int8 only) at i * scale_step. */
static NOINLINE void powers_of(workspace w, int sets, int group, const uint8_t *visible, const page_head *page,
                               int scale_step)
{
    int queries = sets * group;
    vfloat lowest = splat(-INFINITY);
    float *scores = w.power;
    for (int i = 0; i < sets; i++)
        for (int g = 0; g < group; g++, scores += SN_PAGE) {
            vfloat best = lowest;
            for (int j = 0; j < PAGE_VECTORS; j++) {
                vfloat s = load(scores + j * LANES);
                if (page->key_scales != NULL) s = multiply(s, load(page->key_scales + i * scale_step + j * LANES));
                if (visible[i] < SN_PAGE) s = pick(LANE_NUMBERS + j * LANES < splat_int(visible[i]), s, lowest);
                store(scores + j * LANES, s);
                best = maximum(best, s);
            }
            float page_top = largest_lane(best), *top = w.top + i * group + g;
            w.fade[i * group + g] = *top;
            *top = page_top > *top ? page_top : *top;
        }
    for (int i = 0; i < queries; i += LANES)
        store(w.fade + i, exp2_of(load(w.fade + i) - load(w.top + i)));
    float *powers = w.power, *lanes = w.lanes;
    for (int i = 0; i < sets; i++)
        for (int g = 0; g < group; g++, powers += SN_PAGE, lanes += SUM_LANES) {
            vfloat top = splat(w.top[i * group + g]), fade = splat(w.fade[i * group + g]), sum[SUM_VECTORS];
            UNROLL for (int j = 0; j < SUM_VECTORS; j++) sum[j] = splat(0.0f);
            UNROLL for (int j = 0; j < PAGE_VECTORS; j++) {
                vfloat p = exp2_of(load(powers + j * LANES) - top);
                sum[j % SUM_VECTORS] = fmadd(p, splat(1.0f), sum[j % SUM_VECTORS]);
                if (page->value_scales != NULL)
                    p = multiply(p, load(page->value_scales + i * scale_step + j * LANES));
                store(powers + j * LANES, p);
            }
            UNROLL for (int j = 0; j < SUM_VECTORS; j++)
                store(lanes + j * LANES, fmadd(load(lanes + j * LANES), fade, sum[j]));
        }
}

/* ---------------------------------------------------------------------------------------- values */

/* acc = acc * fade + power . values over tokens first to end, for `vectors` vectors of channels. */
INLINE void values_of(const int queries, const int vectors, const int dtype, const void *values, int channel,
                      int head_dim, const float *power, int first, int end, const float *fade, float *acc,
                      const char *next)
{
    vfloat sum[VALUE_QUERIES][VALUE_VECTORS];
    UNROLL for (int i = 0; i < queries; i++) {
        vfloat old = splat(fade[i]);
        UNROLL for (int j = 0; j < vectors; j++)
            sum[i][j] = multiply(load(acc + (int64_t)i * head_dim + channel + j * LANES), old);
    }
    for (int t = first; t < end; t++) {
        vfloat value[VALUE_VECTORS];
        UNROLL for (int j = 0; j < vectors; j++)
            value[j] = widen(dtype, values, (int64_t)t * head_dim + channel + j * LANES);
        UNROLL for (int i = 0; i < queries; i++) {
            vfloat p = splat(power[i * SN_PAGE + t]);
            UNROLL for (int j = 0; j < vectors; j++) sum[i][j] = fmadd(p, value[j], sum[i][j]);
        }
        if (next != NULL) {
            PREFETCH(next);
            PREFETCH(next + 64);
            next += 128;
        }
    }
    UNROLL for (int i = 0; i < queries; i++)
        UNROLL for (int j = 0; j < vectors; j++) store(acc + (int64_t)i * head_dim + channel + j * LANES, sum[i][j]);
}

/* The last channels where head_dim is no multiple of a vector. */
static void values_tail(int queries, int dtype, const void *values, int channel, int head_dim, const float *power,
                        int first, int end, const float *fade, float *acc)
{
    for (int i = 0; i < queries; i++)
        for (int c = channel; c < head_dim; c++) {
            float sum = acc[(int64_t)i * head_dim + c] * fade[i];
            for (int t = first; t < end; t++)
                sum = fmadd_one(power[i * SN_PAGE + t], widen_one(dtype, values, (int64_t)t * head_dim + c), sum);
            acc[(int64_t)i * head_dim + c] = sum;
        }
}

static void values_some(int n, int vectors, int dtype, const void *values, int channel, int head_dim,
                        const float *power, int first, int end, const float *fade, float *acc, const char *next)
{
#define CASE(n, v, type)                                                                                        \
    case 16 * n + 4 * (v > 1) + type:                                                                           \
        values_of(n, v, type, values, channel, head_dim, power, first, end, fade, acc, next);                   \
        break;
#define CASES(n)                                                                       \
    CASE(n, 1, 0) CASE(n, 1, 1) CASE(n, 1, 2) CASE(n, 1, 3)                            \
    CASE(n, VALUE_VECTORS, 0) CASE(n, VALUE_VECTORS, 1) CASE(n, VALUE_VECTORS, 2) CASE(n, VALUE_VECTORS, 3)
    switch (16 * n + 4 * (vectors > 1) + dtype) { CASES(1) CASES(2) CASES(3) CASES(4) }
#undef CASES
#undef CASE
}

/* All channels of any number of queries. */
static void add_values(int queries, int dtype, const void *values, int head_dim, const float *power, int first,
                       int end, const float *fade, float *acc, const char *next)
{
    while (queries > 0) {
        int n, channel = 0;
        if (queries >= VALUE_QUERIES && dtype == SN_KV_FLOAT32) {
            n = VALUE_QUERIES;
            for (; channel + VALUE_VECTORS * LANES <= head_dim; channel += VALUE_VECTORS * LANES)
                values_of(VALUE_QUERIES, VALUE_VECTORS, SN_KV_FLOAT32, values, channel, head_dim, power, first, end,
                          fade, acc, NULL);
            for (; channel + LANES <= head_dim; channel += LANES)
                values_of(VALUE_QUERIES, 1, SN_KV_FLOAT32, values, channel, head_dim, power, first, end, fade, acc,
                          NULL);
        } else {
            n = queries < 4 ? queries : 4;
            for (; channel + VALUE_VECTORS * LANES <= head_dim; channel += VALUE_VECTORS * LANES) {
                values_some(n, VALUE_VECTORS, dtype, values, channel, head_dim, power, first, end, fade, acc, next);
                next = NULL;
            }
            for (; channel + LANES <= head_dim; channel += LANES)
                values_some(n, 1, dtype, values, channel, head_dim, power, first, end, fade, acc, NULL);
        }
        if (channel < head_dim)
            values_tail(n, dtype, values, channel, head_dim, power, first, end, fade, acc);
        queries -= n;
        power += n * SN_PAGE;
        fade += n;
        acc += (int64_t)n * head_dim;
    }
}

/* ---------------------------------------------------------------------------------------- attention */

/* First what all rows see of the page, then row by row what each sees beyond that. */
static void add_page(workspace w, int rows, int group, const uint8_t *visible, const float *values, int head_dim)
{
    int whole = 0;
    while (whole < rows && visible[whole] == SN_PAGE) whole++;
    if (whole > 0)
        add_values(whole * group, SN_KV_FLOAT32, values, head_dim, w.power, 0, SN_PAGE, w.fade, w.acc, NULL);
    if (whole == rows) return;
    int at = whole * group, shared = visible[whole];
    add_values((rows - whole) * group, SN_KV_FLOAT32, values, head_dim, w.power + at * SN_PAGE, 0, shared,
               w.fade + at, w.acc + (int64_t)at * head_dim, NULL);
    for (int i = 0; i < group; i++) w.fade[at + i] = 1.0f;
    for (int row = whole + 1; row < rows; row++)
        add_values(group, SN_KV_FLOAT32, values, head_dim, w.power + row * group * SN_PAGE, shared, visible[row],
                   w.fade + at, w.acc + (int64_t)row * group * head_dim, NULL);
}

/* Scaled queries in, sums at nothing. */
static void begin(workspace w, float scale, const float *q, int at, int floats, int queries, int head_dim)
{
    float *to = w.q + (int64_t)at * head_dim;
    for (int i = 0; i < floats; i++) to[i] = q[i] * scale;
    memset(w.acc + (int64_t)at * head_dim, 0, sizeof(float) * (size_t)floats);
    memset(w.lanes + (int64_t)at * SUM_LANES, 0, sizeof(float) * (size_t)(queries * SUM_LANES));
    for (int i = 0; i < queries; i++) w.top[at + i] = -INFINITY;
}

/* The result of `queries` queries from number `at` on. */
static void finish(workspace w, int at, int queries, int head_dim, float *out)
{
    for (int i = 0; i < queries; i++) {
        float *lanes = w.lanes + (int64_t)(at + i) * SUM_LANES;
        for (int width = SUM_LANES / 2; width > 0; width /= 2)
            for (int j = 0; j < width; j++) lanes[j] += lanes[j + width];
        float share = 1.0f / lanes[0];
        const float *sum = w.acc + (int64_t)(at + i) * head_dim;
        for (int c = 0; c < head_dim; c++) out[(int64_t)i * head_dim + c] = sum[c] * share;
    }
}

/* One row, for `sets` KV heads from `head` on together; q and out point at the first one's queries. */
static void attend_one(const sn_attention *attention, const sn_kv *kv, const sn_piece *piece, int block,
                       int64_t position, int head, int sets, int group, const float *q, float *out, workspace w)
{
    int hd = attention->key_dim;
    begin(w, attention->scale * LOG2_E, q, 0, sets * group * hd, sets * group, hd);
    int64_t pages = position / SN_PAGE + 1, bytes = (int64_t)hd * SN_PAGE * ELEMENT_BYTES[kv->dtype];
    page_head next = locate(attention, kv, slot_of(piece, block, 0), head);
    for (int64_t p = 0; p < pages; p++) {
        page_head page = next;
        int more = p + 1 < pages, sees = more ? SN_PAGE : (int)(position % SN_PAGE) + 1;
        if (more) next = locate(attention, kv, slot_of(piece, block, p + 1), head);
        uint8_t visible[TILE_QUERIES];
        memset(visible, sees, (size_t)sets);
        for (int i = 0; i < sets; i++)
            scores_stored(kv->dtype, page.keys + i * bytes, w.q + (int64_t)i * group * hd, hd, group,
                          w.power + i * group * SN_PAGE, more ? next.keys + i * bytes : NULL);
        powers_of(w, sets, group, visible, &page, SN_PAGE);
        for (int i = 0; i < sets; i++)
            add_values(group, kv->dtype, page.values + i * bytes, hd, w.power + i * group * SN_PAGE, 0, sees,
                       w.fade + i * group, w.acc + (int64_t)i * group * hd, more ? next.values + i * bytes : NULL);
    }
    finish(w, 0, sets * group, hd, out);
}

/* The `rows` rows from `first` on, for the query heads of one KV head; q and out point at the first row's. */
static void attend_tile(const sn_attention *attention, const sn_kv *kv, const sn_piece *piece, int block, int first,
                        int rows, int head, int group, const float *q, int64_t ldq, float *out, int64_t ldo,
                        workspace w)
{
    int hd = attention->key_dim, queries = rows * group;
    for (int i = 0; i < rows; i++) begin(w, attention->scale * LOG2_E, q + i * ldq, i * group, group * hd, group, hd);
    int64_t start = (int64_t)piece->start + first; /* position of the first row */
    int64_t pages = (start + rows - 1) / SN_PAGE + 1;
    for (int64_t p = 0; p < pages; p++) {
        page_head page = locate(attention, kv, slot_of(piece, block, p), head);
        int64_t at = p * SN_PAGE;
        int before = at > start ? (int)(at - start) : 0; /* rows that see nothing of the page */
        uint8_t visible[TILE_QUERIES];
        for (int i = before; i < rows; i++) {
            int64_t sees = start + i + 1 - at;
            visible[i - before] = (uint8_t)(sees < SN_PAGE ? sees : SN_PAGE);
        }
        int skip = before * group;
        workspace here = w;
        here.q += (int64_t)skip * hd;
        here.acc += (int64_t)skip * hd;
        here.lanes += (int64_t)skip * SUM_LANES;
        here.top += skip;
        here.fade += skip;
        const float *keys = (const float *)page.keys, *values = (const float *)page.values;
        if (kv->dtype != SN_KV_FLOAT32) {
            widen_all(kv->dtype, page.keys, w.keys, (int64_t)hd * SN_PAGE);
            widen_all(kv->dtype, page.values, w.values, (int64_t)hd * SN_PAGE);
            keys = w.keys, values = w.values;
        }
        scores_float32(keys, here.q, hd, queries - skip, here.power);
        powers_of(here, rows - before, group, visible, &page, 0);
        add_page(here, rows - before, group, visible, values, hd);
    }
    for (int i = 0; i < rows; i++) finish(w, i * group, group, hd, out + i * ldo);
}

void sn_attend(const sn_attention *attention, const sn_kv *kv, const sn_piece *piece, int block, int first, int count,
               const float *q, int64_t ldq, float *out, int64_t ldo, int head_first, int head_end, float *scratch)
{
    int group = attention->heads / attention->kv_heads, hd = attention->key_dim;
    workspace w = lay_out(scratch, tile_queries(group), hd);
    for (int head = head_first; head < head_end;) {
        int kv_head = head / group, sets = 1, some = (kv_head + 1) * group - head;
        if (some > head_end - head) some = head_end - head;
        int tile = TILE_QUERIES > some ? TILE_QUERIES / some : 1; /* rows, or KV heads of one row */
        if (some == group && (count < tile ? count : tile) * group < WIDEN_QUERIES) {
            sets = (head_end - head) / group;
            if (sets > tile) sets = tile;
        }
        for (int done = 0; done < count; done += tile) {
            int rows = count - done < tile ? count - done : tile;
            const float *from = q + done * ldq + (int64_t)head * hd;
            float *to = out + done * ldo + (int64_t)head * hd;
            if (sets == 1 && rows * some >= WIDEN_QUERIES)
                attend_tile(attention, kv, piece, block, first + done, rows, kv_head, some, from, ldq, to, ldo, w);
            else
                for (int i = 0; i < rows; i++)
                    attend_one(attention, kv, piece, block, (int64_t)piece->start + first + done + i, kv_head, sets,
                               some, from + i * ldq, to + i * ldo, w);
        }
        head += sets * some;
    }
}
