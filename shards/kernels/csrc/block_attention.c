/* The first half of a block, where what is cached of a token are the keys and values of its heads. */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "product.h"
#include "tile.h"

/* Where the parts of a row of t->qkv lie, in floats. */
typedef struct {
    int64_t k, v, gate, width;
} layout;

static layout layout_of(const sn_block *block)
{
    const sn_attention *a = &block->attention;
    int64_t q = (int64_t)a->heads * a->key_dim, kv = (int64_t)a->kv_heads * a->key_dim, rows = block->qkv.rows;
    if (block->kv_of >= 0)
        return (layout){q, q, q, rows};
    if (block->keys_as_values) /* which are copied behind what the product gives */
        return (layout){q, rows, q + kv, rows + kv};
    return (layout){q, q + kv, q + 2 * kv, rows};
}

void sn_scale_query(const sn_block *block, int64_t position, float *x, int64_t n)
{
    if (!block->scale_period)
        return;
    /* In float64, so that after rounding no library's logarithm shows. */
    double periods = (double)((position + block->scale_offset) / block->scale_period);
    float factor = (float)(1.0 + (double)block->scale_beta * log(1.0 + periods));
    for (int64_t i = 0; i < n; i++)
        x[i] *= factor;
}

void sn_norm_rows(sn_tile *t, int32_t first, int32_t end)
{
    for (int64_t row = first; row < end && t->block->state == NULL; row++)
        sn_norm_row(&t->block->norm, t->x + row * t->hidden, t->normed + row * t->hidden, t->hidden, 0);
}

static void norm_input(void *arg, int32_t first, int32_t end, int32_t thread)
{
    sn_tile *t = arg;
    (void)thread;
    sn_norm_rows(t, first, end);
    sn_linear_prepare_part(&t->block->qkv, t->normed, t->hidden, t->rows, t->prepared, first, end, 0, t->hidden);
}

/* Heads first to end of a row, which begins at x. */
static void norm_heads(const sn_norm *norm, int over_all, float *x, int32_t first, int32_t end, int32_t head_dim)
{
    if (norm->kind == SN_NO_NORM)
        return;
    if (over_all) {
        sn_norm_row(norm, x, x, end * head_dim, 0);
        return;
    }
    for (int64_t head = first; head < end; head++)
        sn_norm_row(norm, x + head * head_dim, x + head * head_dim, head_dim, head * head_dim);
}

/* Norms and rotation of KV heads first to end, all of them with norm_over_all, and of their queries; then stores keys
   and values. A block that reads another's has queries alone. */
static void append_heads(sn_tile *t, const sn_segment *s, int32_t first, int32_t end)
{
    const sn_block *block = t->block;
    const sn_attention *a = &block->attention;
    layout at = layout_of(block);
    int32_t dim = a->key_dim, group = a->heads / a->kv_heads, heads = (end - first) * group;
    int makes_kv = block->kv_of < 0;
    for (int64_t i = 0; i < s->piece.count; i++) {
        float *q = t->qkv + (s->piece.row + i) * at.width, *k = q + at.k, *v = q + at.v;
        float *queries = q + (int64_t)first * group * dim, *keys = k + (int64_t)first * dim;
        if (block->keys_as_values)
            memcpy(v + (int64_t)first * dim, keys, sizeof(float) * (size_t)((end - first) * dim));
        for (int step = 0; step < 2; step++) {
            if (step == block->norm_after_rope) {
                norm_heads(&block->q_norm, block->norm_over_all, q, first * group, end * group, dim);
                if (makes_kv)
                    norm_heads(&block->k_norm, block->norm_over_all, k, first, end, dim);
            } else if (block->rope >= 0) {
                sn_rotation r = sn_rotation_of(t, s, i);
                sn_rotate(queries, dim, heads, r.cos, r.sin, block->rotary);
                if (makes_kv)
                    sn_rotate(keys, dim, end - first, r.cos, r.sin, block->rotary);
            }
        }
        sn_scale_query(block, s->piece.start + i, queries, (int64_t)heads * dim);
        if (makes_kv)
            norm_heads(&block->v_norm, 0, v, first, end, dim);
    }
    if (makes_kv)
        sn_kv_append(a, t->kv, &s->piece, t->number, t->qkv + at.k, t->qkv + at.v, at.width, first, end);
}

static void append(void *arg, int32_t first, int32_t end, int32_t thread)
{
    sn_tile *t = arg;
    (void)thread;
    for (int32_t index = first; index < end; index++)
        append_heads(t, &t->segment[index], 0, t->block->attention.kv_heads);
}

/* Multiplies outputs of query heads first to end of one row by the sigmoid of `gate`. */
static void gate_heads(const sn_block *block, float *out, const float *gate, int32_t first, int32_t end)
{
    int64_t dim = block->attention.value_dim;
    if (block->gate == SN_CHANNEL_GATE)
        sn_sigmoid_mul(out + first * dim, gate + first * dim, (end - first) * (int32_t)dim);
    if (block->gate == SN_HEAD_GATE)
        for (int64_t head = first; head < end; head++) {
            float factor = sn_sigmoid(gate[head]);
            for (int64_t i = 0; i < dim; i++)
                out[head * dim + i] *= factor;
        }
}

/* Parts: ranges of KV heads of each segment. */
static void attend(void *arg, int32_t first, int32_t end, int32_t thread)
{
    sn_tile *t = arg;
    const sn_block *block = t->block;
    const sn_attention *a = &block->attention;
    layout at = layout_of(block);
    int32_t group = a->heads / a->kv_heads, heads = a->kv_heads / t->splits;
    int64_t out = (int64_t)a->heads * a->value_dim, of_kv_head = out / a->kv_heads;
    float *scratch = t->attend_scratch + thread * t->attend_floats;
    for (int32_t index = first; index < end; index++) {
        const sn_segment *s = &t->segment[index / t->splits];
        const sn_piece *piece = &s->piece;
        int32_t kv_first = heads * (index % t->splits), kv_end = kv_first + heads;
        if (!t->appended)
            append_heads(t, s, kv_first, kv_end);
        float *q = t->qkv + piece->row * at.width, *to = t->attended + piece->row * out;
        sn_attend(a, t->kv, piece, sn_kv_block(t), 0, piece->count, q, at.width, to, out, kv_first * group, kv_end * group,
                  scratch);
        for (int64_t i = 0; block->gate != SN_NO_GATE && i < piece->count; i++)
            gate_heads(block, to + i * out, q + i * at.width + at.gate, kv_first * group, kv_end * group);
        sn_linear_prepare_part(&block->out, t->attended, out, t->rows, t->prepared, piece->row,
                               piece->row + piece->count, kv_first * of_kv_head, kv_end * of_kv_head);
    }
}

/* Into how many ranges the KV heads can be divided: the queries' channels of each are whole groups. */
static int32_t head_ranges(const sn_attention *a)
{
    int64_t channels = (int64_t)a->heads / a->kv_heads * a->value_dim;
    int32_t together = 1;
    while (together < SN_GROUP && together * channels % SN_GROUP)
        together *= 2;
    return a->kv_heads % together ? 1 : a->kv_heads / together;
}

void sn_mixed_out(sn_tile *t, sn_pool *pool, const sn_linear *out, const float *from, int64_t ld, const void *prepared,
                  float *branch)
{
    int adds = sn_adds_mixed(t->block);
    sn_multiply(pool, out, from, ld, t->rows, adds ? t->x : branch, t->hidden, adds, prepared);
}

void sn_block_attention(sn_tile *t, sn_pool *pool)
{
    const sn_block *block = t->block;
    const sn_attention *a = &block->attention;
    sn_pool_run(pool, norm_input, t, (int32_t)t->rows, 1);
    sn_multiply(pool, &block->qkv, t->normed, t->hidden, t->rows, t->qkv, layout_of(block).width, 0, t->prepared);
    t->appended |= block->norm_over_all;
    if (t->appended)
        sn_pool_run(pool, append, t, t->segments, 1);
    t->splits = t->segments < 2 * sn_pool_width(pool) ? head_ranges(a) : 1;
    sn_pool_run(pool, attend, t, t->segments * t->splits, 1);
    sn_mixed_out(t, pool, &block->out, t->attended, (int64_t)a->heads * a->value_dim, t->prepared, t->branch);
}
