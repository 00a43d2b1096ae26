/* See attention.h.

   A "query" below is one query head of one row. For each KV head, the queries that share it walk its pages in
   order: scores of the page (32 dot products, each one chain over the channels), running maximum, powers, then
   the weighted values (each channel one chain over the tokens). Kernels differ in how many queries they take
   at once, never in what they do for one of them; multiply-adds are explicit, so that no compiler fuses them
   in one kernel and not in another. Sums across a page are made in SUM_LANES parts whatever the vectors'
   width: every CPU with fused multiply-add gets the same bits.
   What a query does not see takes no part: its scores are masked, its values are not read.
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

/* What a call works on and with. A query's sums are whole vectors: where value_dim is not a multiple of one, the last
   vector holds the last LANES channels, some of them a second time. */
typedef struct work {
    const sn_attention *attention;
    const sn_kv *kv;
    const sn_piece *piece;
    int block, width; /* floats of a query's sums */
    float *q;         /* [queries][key_dim], scaled */
    float *acc;       /* [queries][width], sum of power * value */
    float *power;     /* [queries][SN_PAGE]: the page's scores, then their powers */
    float *lanes;     /* [queries][SUM_LANES], sum of powers: part i of tokens i, i + SUM_LANES, ... of each page */
    float *top;       /* [queries + LANES], largest score so far; the rest is there to be overwritten */
    float *fade;      /* [queries + LANES], what the sums so far are worth under the new largest score */
    float *keys;      /* [key_dim][SN_PAGE], the page in float32 */
    float *values;    /* [SN_PAGE][value_dim] */
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
    float **places[] = {&w->q, &w->acc, &w->power, &w->lanes, &w->top, &w->fade, &w->keys, &w->values};
    int64_t floats[] = {TILE_QUERIES * key_dim, TILE_QUERIES * w->width, TILE_QUERIES * SN_PAGE,
                        TILE_QUERIES * SUM_LANES, TILE_QUERIES + LANES, TILE_QUERIES + LANES,
                        key_dim * SN_PAGE, value_dim * SN_PAGE};
    int64_t used = 0;
    for (int i = 0; i < 8; i++) {
        if (scratch != NULL) *places[i] = (float *)(((uintptr_t)scratch + 63) / 64 * 64) + used;
        used += padded(floats[i]);
    }
    return used + 16;
}

int64_t sn_attend_scratch(const sn_attention *attention)
{
    work w = {.attention = attention};
    return lay_out(&w, NULL);
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

/* [channels][SN_PAGE] to [SN_PAGE][channels]. */
static void transpose(const float *from, float *to, int channels)
{
    int c = 0;
    for (; c + 4 <= channels; c += 4)
        for (int t = 0; t < SN_PAGE; t += 4) transpose_4(from + c * SN_PAGE + t, SN_PAGE, to + t * channels + c, channels);
    for (; c < channels; c++)
        for (int t = 0; t < SN_PAGE; t++) to[t * channels + c] = from[c * SN_PAGE + t];
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
   point at the first one's, of the first token and of the first query. */
INLINE void channels_of(const int queries, const int vectors, const int dtype, const char *values, int64_t value_dim,
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
        UNROLL for (int j = 0; j < vectors; j++) value[j] = widen(dtype, values, t * value_dim + j * LANES);
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
INLINE void values_of(const int queries, const int dtype, const char *values, int value_dim, const float *power,
                      int first, int end, const float *fade, float *acc, int64_t width, const char *next)
{
    int c = 0;
    for (; c + VALUE_VECTORS * LANES <= value_dim; c += VALUE_VECTORS * LANES) {
        channels_of(queries, VALUE_VECTORS, dtype, values + c * ELEMENT_BYTES[dtype], value_dim, power, first, end,
                    fade, acc + c, width, next);
        next = NULL;
    }
    for (; c < value_dim && value_dim >= LANES; c += LANES) {
        int from = c + LANES <= value_dim ? c : value_dim - LANES;
        channels_of(queries, 1, dtype, values + from * ELEMENT_BYTES[dtype], value_dim, power, first, end, fade,
                    acc + c, width, NULL);
    }
    for (int i = 0; i < queries; i++)
        for (int lone = c; lone < value_dim; lone++) {
            float sum = acc[i * width + lone] * fade[i];
            for (int t = first; t < end; t++)
                sum = fmadd_one(power[i * SN_PAGE + t], widen_one(dtype, values, t * value_dim + lone), sum);
            acc[i * width + lone] = sum;
        }
}

/* `queries` queries from number `query` on, over tokens first to end. Meanwhile asks for the lines at `next` on. */
static void add_values(const work *w, int query, int queries, const int dtype, const void *values, int first, int end,
                       const char *next)
{
    const int value_dim = w->attention->value_dim;
    const int64_t width = w->width;
    const float *power = w->power + query * SN_PAGE, *fade = w->fade + query;
    float *acc = w->acc + query * width;
    for (int n; queries > 0; queries -= n) {
        n = dtype == SN_KV_FLOAT32 && queries >= VALUE_QUERIES ? VALUE_QUERIES : queries < 4 ? queries : 4;
#define CASE(n, type)                                                                        \
    case 4 * n + type:                                                                       \
        values_of(n, type, values, value_dim, power, first, end, fade, acc, width, next);    \
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

/* ---------------------------------------------------------------------------------------- attention */

/* The first position that the one at `position` sees. */
static int64_t first_seen(const sn_attention *attention, int64_t position)
{
    if (attention->chunk > 0) return position / attention->chunk * attention->chunk;
    return attention->window > 0 && position >= attention->window ? position - attention->window + 1 : 0;
}

/* What the one at `position`, which sees some of it, sees of the page of positions `at` on. */
static seen seen_of(const sn_attention *attention, int64_t position, int64_t at)
{
    int64_t first = first_seen(attention, position) - at, end = position + 1 - at;
    return (seen){(uint8_t)(first > 0 ? first : 0), (uint8_t)(end < SN_PAGE ? end : SN_PAGE)};
}

/* The sums are worth what they are from here on. */
static void faded(const work *w, int query, int queries)
{
    for (int i = query; i < query + queries; i++) w->fade[i] = 1.0f;
}

/* Row by row what it alone sees, then what all rows see, then again what each sees beyond that. */
static void add_page(const work *w, int rows, int group, const seen *sees, const float *values)
{
    int first = sees[rows - 1].first, end = sees[0].end > first ? sees[0].end : first;
    for (int row = 0; row < rows && sees[row].first < first; row++) {
        int stop = sees[row].end < first ? sees[row].end : first;
        add_values(w, row * group, group, SN_KV_FLOAT32, values, sees[row].first, stop, NULL);
        faded(w, row * group, group);
    }
    if (first < end) {
        add_values(w, 0, rows * group, SN_KV_FLOAT32, values, first, end, NULL);
        faded(w, 0, rows * group);
    }
    for (int row = 0; row < rows; row++)
        if (sees[row].end > end)
            add_values(w, row * group, group, SN_KV_FLOAT32, values, end, sees[row].end, NULL);
}

/* Scaled queries of heads `head` to `head` + queries of a row in, sums at nothing, or at what the sinks give them. */
static void begin(const work *w, int head, int queries, const float *q)
{
    const sn_attention *a = w->attention;
    float scale = a->softcap != 0.0f ? a->scale / a->softcap : a->scale * LOG2_E;
    for (int64_t i = 0; i < (int64_t)queries * a->key_dim; i++) w->q[i] = q[i] * scale;
    memset(w->acc, 0, sizeof(float) * (size_t)(queries * w->width));
    memset(w->lanes, 0, sizeof(float) * (size_t)(queries * SUM_LANES));
    for (int i = 0; i < queries; i++) {
        w->top[i] = a->sinks != NULL ? a->sinks[head + i] * LOG2_E : -INFINITY;
        w->lanes[i * SUM_LANES] = a->sinks != NULL;
    }
}

static void finish(const work *w, int queries, float *out)
{
    int value_dim = w->attention->value_dim, tail = value_dim % LANES, whole = value_dim - tail;
    for (int i = 0; i < queries; i++, out += value_dim) {
        float *lanes = w->lanes + i * SUM_LANES;
        for (int width = SUM_LANES / 2; width > 0; width /= 2)
            for (int j = 0; j < width; j++) lanes[j] += lanes[j + width];
        float share = 1.0f / lanes[0];
        const float *sum = w->acc + (int64_t)i * w->width;
        for (int c = 0; c < whole; c++) out[c] = sum[c] * share;
        if (whole > 0) sum += LANES - tail; /* the last vector's last channels */
        for (int c = whole; c < value_dim; c++) out[c] = sum[c] * share;
    }
}

/* One row, for `sets` KV heads from `kv_head` on together, and `group` query heads of each, `head` being the first; q
   and out point at it. */
static void attend_one(const work *w, int64_t position, int kv_head, int sets, int head, int group, const float *q,
                       float *out)
{
    const sn_attention *a = w->attention;
    int dtype = w->kv->dtype;
    int64_t key_bytes = (int64_t)a->key_dim * SN_PAGE * ELEMENT_BYTES[dtype];
    int64_t value_bytes = (int64_t)a->value_dim * SN_PAGE * ELEMENT_BYTES[dtype];
    begin(w, head, sets * group, q);
    int64_t p = first_seen(a, position) / SN_PAGE, last = position / SN_PAGE;
    page_head next = locate(a, w->kv, slot_of(w->piece, w->block, p), kv_head);
    for (; p <= last; p++) {
        page_head page = next;
        if (p < last) next = locate(a, w->kv, slot_of(w->piece, w->block, p + 1), kv_head);
        seen sees[TILE_QUERIES], here = seen_of(a, position, p * SN_PAGE);
        for (int i = 0; i < sets; i++) sees[i] = here;
        for (int i = 0; i < sets; i++)
            scores_stored(dtype, page.keys + i * key_bytes, w->q + (int64_t)i * group * a->key_dim, a->key_dim, group,
                          w->power + i * group * SN_PAGE, p < last ? next.keys + i * key_bytes : NULL);
        powers_of(w, sets, group, sees, &page, SN_PAGE);
        for (int i = 0; i < sets; i++)
            add_values(w, i * group, group, dtype, page.values + i * value_bytes, here.first, here.end,
                       p < last ? next.values + i * value_bytes : NULL);
    }
    finish(w, sets * group, out);
}

/* `rows` rows from row `first` of the piece on, for `group` query heads of one KV head, `head` being the first; q and
   out point at it in the first row. */
static void attend_tile(const work *w, int first, int rows, int kv_head, int head, int group, const float *q,
                        int64_t ldq, float *out, int64_t ldo)
{
    const sn_attention *a = w->attention;
    int dtype = w->kv->dtype;
    for (int i = 0; i < rows; i++) {
        work its = skip(*w, i * group);
        begin(&its, head, group, q + i * ldq);
    }
    int64_t start = (int64_t)w->piece->start + first, last = start + rows - 1; /* positions */
    for (int64_t p = first_seen(a, start) / SN_PAGE; p <= last / SN_PAGE; p++) {
        page_head page = locate(a, w->kv, slot_of(w->piece, w->block, p), kv_head);
        int64_t at = p * SN_PAGE;
        int begin_row = at > start ? (int)(at - start) : 0, end_row = begin_row; /* those that see some of it */
        seen sees[TILE_QUERIES];
        for (; end_row < rows && first_seen(a, start + end_row) < at + SN_PAGE; end_row++)
            sees[end_row - begin_row] = seen_of(a, start + end_row, at);
        const float *keys = (const float *)page.keys, *values = (const float *)page.values;
        if (dtype != SN_KV_FLOAT32) {
            widen_all(dtype, page.keys, w->keys, (int64_t)a->key_dim * SN_PAGE);
            keys = w->keys;
        }
        if (a->shared) {
            transpose(keys, w->values, a->value_dim);
            values = w->values;
        } else if (dtype != SN_KV_FLOAT32) {
            widen_all(dtype, page.values, w->values, (int64_t)a->value_dim * SN_PAGE);
            values = w->values;
        }
        work here = skip(*w, begin_row * group);
        scores_float32(keys, here.q, a->key_dim, (end_row - begin_row) * group, here.power);
        powers_of(&here, end_row - begin_row, group, sees, &page, 0);
        add_page(&here, end_row - begin_row, group, sees, values);
    }
    for (int i = 0; i < rows; i++) {
        work its = skip(*w, i * group);
        finish(&its, group, out + i * ldo);
    }
}

void sn_attend(const sn_attention *attention, const sn_kv *kv, const sn_piece *piece, int block, int first, int count,
               const float *q, int64_t ldq, float *out, int64_t ldo, int head_first, int head_end, float *scratch)
{
    work w = {.attention = attention, .kv = kv, .piece = piece, .block = block};
    lay_out(&w, scratch);
    int group = attention->heads / attention->kv_heads;
    for (int head = head_first, taken; head < head_end; head += taken) {
        int kv_head = head / group, sets = 1;
        taken = (kv_head + 1) * group - head;
        if (taken > head_end - head) taken = head_end - head;
        if (taken > TILE_QUERIES) taken = TILE_QUERIES;
        int tile = TILE_QUERIES / taken; /* rows, or KV heads of one row */
        const float *from = q + (int64_t)head * attention->key_dim;
        float *to = out + (int64_t)head * attention->value_dim;
        if (!attention->shared && taken == group && (count < tile ? count : tile) * group < WIDEN_QUERIES) {
            sets = (head_end - head) / group < tile ? (head_end - head) / group : tile;
        }
        for (int done = 0; done < count; done += tile) {
            int rows = count - done < tile ? count - done : tile;
            if (attention->shared || (sets == 1 && rows * taken >= WIDEN_QUERIES))
                attend_tile(&w, first + done, rows, kv_head, head, taken, from + done * ldq, ldq, to + done * ldo, ldo);
            else
                for (int i = done; i < done + rows; i++)
                    attend_one(&w, (int64_t)piece->start + first + i, kv_head, sets, head, taken, from + i * ldq,
                               to + i * ldo);
        }
        taken *= sets;
    }
}
