/* What attention.c does with one page: scores of its tokens, their powers, the weighted values.

   Kernels differ in how many queries they take at once, never in what they do for one of them; multiply-adds are
   explicit, so that no compiler fuses them in one kernel and not in another. Sums across a page are made in SUM_LANES
   parts whatever the vectors' width: every CPU with fused multiply-add gets the same bits. */
#ifndef SN_ATTENTION_KERNELS_H
#define SN_ATTENTION_KERNELS_H

#include <math.h>

#include "attention.h"
#include "float_simd.h"
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

/* What a call works on and with. A query's sums are whole vectors: where value_dim is not a multiple of one, the last
   vector holds the last LANES channels, some of them a second time. */
typedef struct work {
    const sn_attention *attention;
    const sn_kv *kv;
    const sn_piece *piece;
    int block, width; /* floats of a query's sums */
    int stride;       /* floats from token to token in `values`: their lines must not all share a set of the cache */
    float *q;         /* [queries][key_dim], scaled */
    float *acc;       /* [queries][width], sum of power * value */
    float *power;     /* [queries][SN_PAGE]: the page's scores, then their powers */
    float *lanes;     /* [queries][SUM_LANES], sum of powers: part i of tokens i, i + SUM_LANES, ... of each page */
    float *top;       /* [queries + LANES], largest score so far; the rest is there to be overwritten */
    float *fade;      /* [queries + LANES], what the sums so far are worth under the new largest score */
    float *keys;      /* [key_dim][SN_PAGE], the page in float32 */
    float *values;    /* [SN_PAGE][stride] */
} work;

/* Tokens of a page that a row sees. */
typedef struct seen {
    uint8_t first, end;
} seen;

static int64_t padded(int64_t floats)
{
    return (floats + 15) / 16 * 16;
}

/* Sets the places in scratch memory, if there is any; returns its size. */
static int64_t lay_out(work *w, float *scratch)
{
    const int64_t key_dim = w->attention->key_dim, value_dim = w->attention->value_dim;
    w->width = (int)(value_dim + LANES - 1) / LANES * LANES;
    w->stride = (int)value_dim + (value_dim % 256 == 0 ? 16 : 0);
    float **places[] = {&w->q, &w->acc, &w->power, &w->lanes, &w->top, &w->fade, &w->keys, &w->values};
    int64_t floats[] = {TILE_QUERIES * key_dim, TILE_QUERIES * w->width, TILE_QUERIES * SN_PAGE,
                        TILE_QUERIES * SUM_LANES, TILE_QUERIES + LANES, TILE_QUERIES + LANES,
                        key_dim * SN_PAGE, w->stride * SN_PAGE};
    int64_t used = 0;
    for (int i = 0; i < 8; i++) {
        if (scratch != NULL) *places[i] = (float *)(((uintptr_t)scratch + 63) / 64 * 64) + used;
        used += padded(floats[i]);
    }
    return used + 16;
}

/* The queries from number `at` on. */
static work skip(work w, int at)
{
    w.q += (int64_t)at * w.attention->key_dim;
    w.acc += (int64_t)at * w.width;
    w.power += at * SN_PAGE;
    w.lanes += at * SUM_LANES;
    w.top += at;
    w.fade += at;
    return w;
}

/* ---------------------------------------------------------------------------------------- widening */

INLINE void widen_as(const int dtype, const void *from, float *to, int rows, int count, int stride)
{
    for (int row = 0; row < rows; row++, to += stride) {
        int64_t first = (int64_t)row * count;
        int i = 0;
        for (; i + LANES <= count; i += LANES) store(to + i, widen(dtype, from, first + i));
        for (; i < count; i++) to[i] = widen_one(dtype, from, first + i);
    }
}

/* `rows` rows of `count` values, in float32 `stride` floats apart. */
static void widen_rows(int dtype, const void *from, float *to, int rows, int count, int stride)
{
    if (stride == count) count *= rows, rows = 1;
    switch (dtype) {
    case SN_KV_FLOAT32: widen_as(SN_KV_FLOAT32, from, to, rows, count, stride); break;
    case SN_KV_BFLOAT16: widen_as(SN_KV_BFLOAT16, from, to, rows, count, stride); break;
    case SN_KV_FLOAT16: widen_as(SN_KV_FLOAT16, from, to, rows, count, stride); break;
    default: widen_as(SN_KV_INT8, from, to, rows, count, stride);
    }
}

/* [channels][SN_PAGE] to [SN_PAGE][stride]. */
static void transpose(const float *from, float *to, int channels, int stride)
{
    int c = 0;
    for (; c + 4 <= channels; c += 4)
        for (int t = 0; t < SN_PAGE; t += 4) transpose_4(from + c * SN_PAGE + t, SN_PAGE, to + t * stride + c, stride);
    for (; c < channels; c++)
        for (int t = 0; t < SN_PAGE; t++) to[t * stride + c] = from[c * SN_PAGE + t];
}

/* ---------------------------------------------------------------------------------------- scores */

/* Scores of `queries` queries against the page's 32 tokens. Meanwhile asks for the line at `next` on. */
INLINE void scores_of(const int queries, const int dtype, const void *keys, const float *q, int key_dim, float *out,
                      const char *next)
{
    vfloat sum[SCORE_QUERIES][PAGE_VECTORS];
    UNROLL for (int i = 0; i < queries; i++)
        UNROLL for (int j = 0; j < PAGE_VECTORS; j++) sum[i][j] = splat(0.0f);
    for (int d = 0; d < key_dim; d++) {
        vfloat key[PAGE_VECTORS];
        UNROLL for (int j = 0; j < PAGE_VECTORS; j++) key[j] = widen(dtype, keys, (int64_t)d * SN_PAGE + j * LANES);
        UNROLL for (int i = 0; i < queries; i++) {
            vfloat channel = splat(q[(int64_t)i * key_dim + d]);
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

static void scores_stored(const int dtype, const void *keys, const float *q, int key_dim, int queries, float *out,
                          const char *next)
{
#define CASE(n, type)                                              \
    case 4 * n + type:                                             \
        scores_of(n, type, keys, q, key_dim, out, next);          \
        break;
#define CASES(n) CASE(n, 0) CASE(n, 1) CASE(n, 2) CASE(n, 3)
    for (int done = 0; done < queries;) {
        int n = queries - done < 4 ? queries - done : 4;
        switch (4 * n + dtype) { CASES(1) CASES(2) CASES(3) CASES(4) }
        done += n;
        q += (int64_t)n * key_dim;
        out += n * SN_PAGE;
        next = NULL;
    }
#undef CASES
#undef CASE
}

static void scores_float32(const float *keys, const float *q, int key_dim, int queries, float *out)
{
    for (; queries >= SCORE_QUERIES; queries -= SCORE_QUERIES) {
        scores_of(SCORE_QUERIES, SN_KV_FLOAT32, keys, q, key_dim, out, NULL);
        q += (int64_t)SCORE_QUERIES * key_dim;
        out += SCORE_QUERIES * SN_PAGE;
    }
    if (queries > 0) scores_stored(SN_KV_FLOAT32, keys, q, key_dim, queries, out, NULL);
}

/* ---------------------------------------------------------------------------------------- softmax */

/* Turns the page's scores (natural logarithms times log2 e; with a softcap c, divided by c and not yet times log2 e)
   into powers of two relative to the largest score so far. `group` queries form a set; those of set i see sees[i] of
   the page, at least one token, and the token scales (int8 only) at i * scale_step. */
INLINE void powers_with(const int capped, const work w, int sets, int group, const seen *sees,
                        const page_head *page, int scale_step)
{
    const float *key_scales = page->key_scales, *value_scales = page->value_scales;
    const int queries = sets * group;
    vfloat lowest = splat(-INFINITY), cap = splat(w.attention->softcap * LOG2_E);
    float *scores = w.power;
    for (int i = 0; i < sets; i++) {
        const int first = sees[i].first, end = sees[i].end, some = end - first < SN_PAGE;
        for (int g = 0; g < group; g++, scores += SN_PAGE) {
            vfloat best = lowest;
            for (int j = 0; j < PAGE_VECTORS; j++) {
                vfloat s = load(scores + j * LANES);
                if (key_scales != NULL) s = multiply(s, load(key_scales + i * scale_step + j * LANES));
                if (capped) s = multiply(tanh_of(s), cap);
                if (some) {
                    vint token = LANE_NUMBERS + j * LANES;
                    s = pick((token >= splat_int(first)) & (token < splat_int(end)), s, lowest);
                }
                store(scores + j * LANES, s);
                best = maximum(best, s);
            }
            float page_top = largest_lane(best), *top = w.top + i * group + g;
            w.fade[i * group + g] = *top;
            *top = page_top > *top ? page_top : *top;
        }
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
                if (value_scales != NULL) p = multiply(p, load(value_scales + i * scale_step + j * LANES));
                store(powers + j * LANES, p);
            }
            UNROLL for (int j = 0; j < SUM_VECTORS; j++)
                store(lanes + j * LANES, fmadd(load(lanes + j * LANES), fade, sum[j]));
        }
}

static NOINLINE void powers_of(const work *w, int sets, int group, const seen *sees, const page_head *page,
                               int scale_step)
{
    if (w->attention->softcap != 0.0f)
        powers_with(1, *w, sets, group, sees, page, scale_step);
    else
        powers_with(0, *w, sets, group, sees, page, scale_step);
}

/* ---------------------------------------------------------------------------------------- values */

/* acc = acc * fade + power . values over tokens first to end, for `vectors` vectors of channels: `values` and `acc`
   point at the first one's, of the first token and of the first query. Values lie `stride` elements from token to
   token. */
INLINE void channels_of(const int queries, const int vectors, const int dtype, const char *values, int64_t stride,
                        const float *power, int first, int end, const float *fade, float *acc, int64_t width,
                        const char *next)
{
    vfloat sum[VALUE_QUERIES][VALUE_VECTORS];
    UNROLL for (int i = 0; i < queries; i++) {
        vfloat old = splat(fade[i]);
        UNROLL for (int j = 0; j < vectors; j++) sum[i][j] = multiply(load(acc + i * width + j * LANES), old);
    }
    for (int t = first; t < end; t++) {
        vfloat value[VALUE_VECTORS];
        UNROLL for (int j = 0; j < vectors; j++) value[j] = widen(dtype, values, t * stride + j * LANES);
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
        UNROLL for (int j = 0; j < vectors; j++) store(acc + i * width + j * LANES, sum[i][j]);
}

/* All channels. Where heads are smaller than a vector, one by one. */
INLINE void values_of(const int queries, const int dtype, const char *values, int64_t stride, int value_dim,
                      const float *power, int first, int end, const float *fade, float *acc, int64_t width,
                      const char *next)
{
    int c = 0;
    for (; c + VALUE_VECTORS * LANES <= value_dim; c += VALUE_VECTORS * LANES) {
        channels_of(queries, VALUE_VECTORS, dtype, values + c * ELEMENT_BYTES[dtype], stride, power, first, end, fade,
                    acc + c, width, next);
        next = NULL;
    }
    for (; c < value_dim && value_dim >= LANES; c += LANES) {
        int from = c + LANES <= value_dim ? c : value_dim - LANES;
        channels_of(queries, 1, dtype, values + from * ELEMENT_BYTES[dtype], stride, power, first, end, fade, acc + c,
                    width, NULL);
    }
    for (int i = 0; i < queries; i++)
        for (int lone = c; lone < value_dim; lone++) {
            float sum = acc[i * width + lone] * fade[i];
            for (int t = first; t < end; t++)
                sum = fmadd_one(power[i * SN_PAGE + t], widen_one(dtype, values, t * stride + lone), sum);
            acc[i * width + lone] = sum;
        }
}

/* `queries` queries from number `query` on, over tokens first to end. Meanwhile asks for the lines at `next` on. */
static void add_values(const work *w, int query, int queries, int dtype, const void *values, int64_t stride, int first,
                       int end, const char *next)
{
    const int value_dim = w->attention->value_dim;
    const int64_t width = w->width;
    const float *power = w->power + query * SN_PAGE, *fade = w->fade + query;
    float *acc = w->acc + query * width;
    for (int n; queries > 0; queries -= n) {
        n = dtype == SN_KV_FLOAT32 && queries >= VALUE_QUERIES ? VALUE_QUERIES : queries < 4 ? queries : 4;
#define CASE(n, type)                                                                             \
    case 4 * n + type:                                                                            \
        values_of(n, type, values, stride, value_dim, power, first, end, fade, acc, width, next); \
        break;
#define CASES(n) CASE(n, 0) CASE(n, 1) CASE(n, 2) CASE(n, 3)
        switch (4 * n + dtype) { CASES(1) CASES(2) CASES(3) CASES(4) CASE(VALUE_QUERIES, 0) }
#undef CASES
#undef CASE
        power += n * SN_PAGE;
        fade += n;
        acc += n * width;
        next = NULL;
    }
}

#endif
