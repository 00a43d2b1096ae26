/* See attention.h.

   A "query" below is one query head of one row. For each KV head, the queries that share it walk its pages in
   order: scores of the page (32 dot products, each one chain over the channels), running maximum, powers, then
   the weighted values (each channel one chain over the tokens). What a query does not see takes no part: its scores
   are masked, its values are not read. Values that are shared with the keys are turned once for all queries of a tile.
   Online softmax: Milakov and Gimelshein 2018, arXiv:1805.02867. */

#include "attention.h"

#include <math.h>
#include <string.h>

#include "attention_kernels.h"

int64_t sn_attend_scratch(const sn_attention *attention)
{
    work w = {.attention = attention};
    return lay_out(&w, NULL);
}

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

/* What each of `rows` rows, of positions `start` on, sees of the page of positions `at` on. Returns how many see some
   of it; `first` becomes the first of them. */
static int rows_that_see(const sn_attention *attention, int64_t start, int rows, int64_t at, seen *sees, int *first)
{
    *first = at > start ? (int)(at - start) : 0;
    if (start + 1 >= at + SN_PAGE && first_seen(attention, start + rows - 1) <= at) {
        for (int row = 0; row < rows; row++) sees[row] = (seen){0, SN_PAGE};
        return rows;
    }
    int row = *first;
    for (; row < rows && first_seen(attention, start + row) < at + SN_PAGE; row++)
        sees[row - *first] = seen_of(attention, start + row, at);
    return row - *first;
}

/* The sums are worth what they are from here on. */
static void faded(const work *w, int query, int queries)
{
    for (int i = query; i < query + queries; i++) w->fade[i] = 1.0f;
}

/* Row by row what it alone sees, then what all rows see, then again what each sees beyond that. */
static void add_page(const work *w, int rows, int group, const seen *sees, const float *values, int64_t stride)
{
    int first = sees[rows - 1].first, end = sees[0].end > first ? sees[0].end : first;
    for (int row = 0; row < rows && sees[row].first < first; row++) {
        int stop = sees[row].end < first ? sees[row].end : first;
        add_values(w, row * group, group, SN_KV_FLOAT32, values, stride, sees[row].first, stop, NULL);
        faded(w, row * group, group);
    }
    if (first < end) {
        add_values(w, 0, rows * group, SN_KV_FLOAT32, values, stride, first, end, NULL);
        faded(w, 0, rows * group);
    }
    for (int row = 0; row < rows; row++)
        if (sees[row].end > end)
            add_values(w, row * group, group, SN_KV_FLOAT32, values, stride, end, sees[row].end, NULL);
}

/* Scaled queries of heads `head` on of a row in, as queries `at` on; sums at nothing, or at what the sinks give. */
static void begin(const work *w, int at, int queries, int head, const float *q)
{
    const sn_attention *a = w->attention;
    float scale = a->softcap != 0.0f ? a->scale / a->softcap : a->scale * LOG2_E;
    float *to = w->q + (int64_t)at * a->key_dim, *lanes = w->lanes + at * SUM_LANES;
    for (int64_t i = 0; i < (int64_t)queries * a->key_dim; i++) to[i] = q[i] * scale;
    memset(w->acc + (int64_t)at * w->width, 0, sizeof(float) * (size_t)(queries * w->width));
    memset(lanes, 0, sizeof(float) * (size_t)(queries * SUM_LANES));
    for (int i = 0; i < queries; i++) {
        w->top[at + i] = a->sinks != NULL ? a->sinks[head + i] * LOG2_E : -INFINITY;
        lanes[i * SUM_LANES] = a->sinks != NULL;
    }
}

/* The result of `queries` queries from number `at` on. */
static void finish(const work *w, int at, int queries, float *out)
{
    int value_dim = w->attention->value_dim, tail = value_dim % LANES, whole = value_dim - tail;
    for (int i = at; i < at + queries; i++, out += value_dim) {
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
    begin(w, 0, sets * group, head, q);
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
            add_values(w, i * group, group, dtype, page.values + i * value_bytes, a->value_dim, here.first, here.end,
                       p < last ? next.values + i * value_bytes : NULL);
    }
    finish(w, 0, sets * group, out);
}

/* `rows` rows from row `first` of the piece on, for `group` query heads of one KV head, `head` being the first; q and
   out point at it in the first row. */
static void attend_tile(const work *w, int first, int rows, int kv_head, int head, int group, const float *q,
                        int64_t ldq, float *out, int64_t ldo)
{
    const sn_attention *a = w->attention;
    int dtype = w->kv->dtype;
    for (int i = 0; i < rows; i++) begin(w, i * group, group, head, q + i * ldq);
    int64_t start = (int64_t)w->piece->start + first, last = start + rows - 1; /* positions */
    for (int64_t p = first_seen(a, start) / SN_PAGE; p <= last / SN_PAGE; p++) {
        page_head page = locate(a, w->kv, slot_of(w->piece, w->block, p), kv_head);
        seen sees[TILE_QUERIES];
        int first_row, seeing = rows_that_see(a, start, rows, p * SN_PAGE, sees, &first_row);
        const float *keys = w->keys, *values = w->values;
        int stride = w->stride;
        if (dtype == SN_KV_FLOAT32)
            keys = (const float *)page.keys;
        else
            widen_rows(dtype, page.keys, w->keys, a->key_dim, SN_PAGE, SN_PAGE);
        if (a->shared)
            transpose(keys, w->values, a->value_dim, stride);
        else if (dtype == SN_KV_FLOAT32)
            values = (const float *)page.values, stride = a->value_dim;
        else
            widen_rows(dtype, page.values, w->values, SN_PAGE, a->value_dim, stride);
        work here = skip(*w, first_row * group);
        scores_float32(keys, here.q, a->key_dim, seeing * group, here.power);
        powers_of(&here, seeing, group, sees, &page, 0);
        add_page(&here, seeing, group, sees, values, stride);
    }
    for (int i = 0; i < rows; i++) finish(w, i * group, group, out + i * ldo);
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
        if (!attention->shared && taken == group && (count < tile ? count : tile) * group < WIDEN_QUERIES)
            sets = (head_end - head) / group < tile ? (head_end - head) / group : tile;
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

/* ------------------------------------------------------------------------------------ tokens that are chosen */

sn_attention sn_index_attention(int32_t dim)
{
    return (sn_attention){.heads = 1, .kv_heads = 1, .key_dim = dim, .value_dim = dim, .shared = 1, .scale = 1.0f};
}

sn_kv sn_index_kv(const sn_attention *attention, const sn_kv *kv)
{
    int64_t values = attention->key_dim + (attention->shared ? 0 : attention->value_dim);
    int64_t scales = kv->dtype != SN_KV_INT8 ? 0 : attention->shared ? 1 : 2;
    int64_t before = attention->kv_heads * SN_PAGE * (values * ELEMENT_BYTES[kv->dtype] + scales * 4);
    return (sn_kv){(char *)kv->data + before, kv->slot_bytes, kv->dtype};
}

void sn_index_scores(const sn_attention *index, const sn_kv *kv, const sn_piece *piece, int block, int64_t first,
                     int64_t end, const float *q, const float *weights, int32_t heads, float *out, float *scratch)
{
    vfloat nothing = splat(0.0f);
    float *widened = scratch + (int64_t)heads * SN_PAGE;
    for (int64_t p = first; p < end; p++) {
        page_head page = locate(index, kv, slot_of(piece, block, p), 0);
        const float *keys = (const float *)page.keys;
        if (kv->dtype != SN_KV_FLOAT32) {
            widen_rows(kv->dtype, page.keys, widened, index->key_dim, SN_PAGE, SN_PAGE);
            keys = widened;
        }
        scores_float32(keys, q, index->key_dim, heads, scratch);
        for (int j = 0; j < PAGE_VECTORS; j++) {
            vfloat sum = nothing;
            for (int32_t head = 0; head < heads; head++)
                sum = fmadd(splat(weights[head]), maximum(load(scratch + head * SN_PAGE + j * LANES), nothing), sum);
            if (page.key_scales != NULL) sum = multiply(sum, load(page.key_scales + j * LANES));
            store(out + p * SN_PAGE + j * LANES, sum);
        }
    }
}

static int64_t pages_of(int32_t tokens) { return (tokens + SN_PAGE - 1) / SN_PAGE; }

int64_t sn_chosen_scratch(const sn_attention *attention, int32_t top)
{
    return pages_of(top) * (4 + (int64_t)sizeof(float) * SN_PAGE * attention->key_dim) + 64;
}

/* Keys begin to end of those that are gathered, all of one page: to the places of their numbers in pages that follow
   each other. */
INLINE void gather_as(const int dtype, const page_head *page, int64_t key_dim, const int32_t *tokens, int32_t begin,
                      int32_t end, float *to)
{
    for (int64_t d = 0; d < key_dim; d++)
        for (int32_t i = begin; i < end; i++) {
            int32_t token = tokens[i] % SN_PAGE;
            float key = widen_one(dtype, page->keys, d * SN_PAGE + token);
            if (dtype == SN_KV_INT8) key *= page->key_scales[token];
            to[(i / SN_PAGE * key_dim + d) * SN_PAGE + i % SN_PAGE] = key;
        }
}

/* The keys of `tokens`, `top` of them, in float32. */
static void gather(const sn_attention *a, const sn_kv *kv, const sn_piece *piece, int block, const int32_t *tokens,
                   int32_t top, float *to)
{
    for (int32_t begin = 0, end; begin < top; begin = end) {
        int32_t number = tokens[begin] / SN_PAGE;
        for (end = begin; end < top && tokens[end] / SN_PAGE == number;) end++;
        page_head page = locate(a, kv, slot_of(piece, block, number), 0);
        switch (kv->dtype) {
        case SN_KV_FLOAT32: gather_as(SN_KV_FLOAT32, &page, a->key_dim, tokens, begin, end, to); break;
        case SN_KV_BFLOAT16: gather_as(SN_KV_BFLOAT16, &page, a->key_dim, tokens, begin, end, to); break;
        case SN_KV_FLOAT16: gather_as(SN_KV_FLOAT16, &page, a->key_dim, tokens, begin, end, to); break;
        default: gather_as(SN_KV_INT8, &page, a->key_dim, tokens, begin, end, to);
        }
    }
}

void sn_attend_chosen(const sn_attention *attention, const sn_kv *kv, const sn_piece *piece, int block,
                      const int32_t *tokens, int32_t top, const float *q, float *out, int head_first, int head_end,
                      float *scratch, void *gathered)
{
    int64_t pages = pages_of(top);
    float *keys = (float *)(((uintptr_t)gathered + 63) / 64 * 64);
    int32_t *table = (int32_t *)(keys + pages * SN_PAGE * attention->key_dim);
    gather(attention, kv, piece, block, tokens, top, keys);
    for (int64_t p = 0; p < pages; p++) table[p] = (int32_t)p;
    sn_kv memory = {keys, (int64_t)sizeof(float) * SN_PAGE * attention->key_dim, SN_KV_FLOAT32};
    sn_piece alone = {table, (int32_t)pages, block, 0, top - 1, 1};
    sn_attend(attention, &memory, &alone, block, 0, 1, q, 0, out, 0, head_first, head_end, scratch);
}
