/* The first half of a block with multi-head latent attention: heads compare their queries, taken to the latent's space,
   with the latents themselves, and what they sum up is taken from there to their values. */
#include <stddef.h>
#include <string.h>

#include "product.h"
#include "tile.h"

/* A row of t->qkv: q of all heads, then the latent and the rotated key. */
static int64_t q_width(const sn_block *block) { return block->latent->q.rows; }

static int64_t row_width(const sn_block *block) { return q_width(block) + block->attention.key_dim; }

static void norm_input(void *arg, int32_t first, int32_t end, int32_t thread)
{
    sn_tile *t = arg;
    const sn_latent *latent = t->block->latent;
    int32_t hidden = t->hidden;
    (void)thread;
    sn_norm_rows(t, first, end);
    sn_linear_prepare_part(latent->q_a.rows ? &latent->q_a : &latent->q, t->normed, hidden, t->rows, t->prepared, first,
                           end, 0, hidden);
    sn_linear_prepare_part(&latent->kv_a, t->normed, hidden, t->rows, t->kv_prepared, first, end, 0, hidden);
}

static void norm_q(void *arg, int32_t first, int32_t end, int32_t thread)
{
    sn_tile *t = arg;
    const sn_latent *latent = t->block->latent;
    int32_t rank = latent->q_a.rows;
    (void)thread;
    for (int64_t row = first; row < end; row++)
        sn_norm_row(&latent->q_norm, t->q_latent + row * rank, t->q_latent + row * rank, rank, 0);
    sn_linear_prepare_part(&latent->q, t->q_latent, rank, t->rows, t->prepared, first, end, 0, rank);
}

/* Parts: segments, whose latents and keys are stored. */
static void append(void *arg, int32_t first, int32_t end, int32_t thread)
{
    sn_tile *t = arg;
    const sn_block *block = t->block;
    const sn_latent *latent = block->latent;
    const sn_attention *a = &block->attention;
    int64_t width = row_width(block), q_floats = q_width(block), dim = latent->nope_dim + latent->rope_dim;
    (void)thread;
    for (int32_t index = first; index < end; index++) {
        const sn_segment *s = &t->segment[index];
        for (int64_t i = 0; i < s->piece.count; i++) {
            float *q = t->qkv + (s->piece.row + i) * width, *key = q + q_floats;
            sn_norm_row(&latent->kv_norm, key, key, a->value_dim, 0);
            if (block->rope >= 0) {
                sn_rotation r = sn_rotation_of(t, s, i);
                sn_rotate(q + latent->nope_dim, dim, a->heads, r.cos, r.sin, block->rotary);
                sn_rotate(key + a->value_dim, 0, 1, r.cos, r.sin, block->rotary);
            }
            sn_scale_query(block, s->piece.start + i, q, q_floats);
        }
        sn_kv_append(a, t->kv, &s->piece, t->number, t->qkv + q_floats, NULL, width, 0, 1);
    }
}

/* Parts: heads, whose queries become as long as keys. */
static void make_queries(void *arg, int32_t first, int32_t end, int32_t thread)
{
    sn_tile *t = arg;
    const sn_latent *latent = t->block->latent;
    const sn_attention *a = &t->block->attention;
    int64_t width = row_width(t->block), dim = latent->nope_dim + latent->rope_dim, ld = (int64_t)a->heads * a->key_dim;
    void *scratch = t->head_scratch + thread * t->head_bytes;
    for (int64_t head = first; head < end; head++) {
        float *q = t->qkv + head * dim, *to = t->queries + head * a->key_dim;
        sn_linear_forward(&latent->k_b[head], q, width, t->rows, to, ld, 0, scratch);
        for (int64_t row = 0; row < t->rows; row++)
            memcpy(to + row * ld + a->value_dim, q + row * width + latent->nope_dim,
                   sizeof(float) * (size_t)latent->rope_dim);
    }
}

/* Heads first to end of the piece's rows, of which those with more tokens before them see the chosen ones. */
static void attend_heads(const sn_tile *t, const sn_piece *piece, int first, int end, int32_t thread)
{
    const sn_attention *a = &t->block->attention;
    int64_t ld = (int64_t)a->heads * a->key_dim, out = (int64_t)a->heads * a->value_dim, top = t->block->latent->top;
    const float *q = t->queries + piece->row * ld;
    float *to = t->attended + piece->row * out, *scratch = t->attend_scratch + thread * t->attend_floats;
    int32_t whole = piece->count; /* so many rows see all */
    if (top)
        whole = top <= piece->start ? 0 : top - piece->start < whole ? (int32_t)(top - piece->start) : whole;
    if (whole)
        sn_attend(a, t->kv, piece, t->number, 0, whole, q, ld, to, out, first, end, scratch);
    for (int32_t i = whole; i < piece->count; i++)
        sn_attend_chosen(a, t->kv, piece, t->number, t->choice->tokens + (t->at + piece->row + i) * t->choice->most,
                         (int32_t)top, q + i * ld, to + i * out, first, end, scratch,
                         t->index_scratch + thread * t->index_bytes);
}

/* Parts: ranges of heads of each segment. */
static void attend(void *arg, int32_t first, int32_t end, int32_t thread)
{
    sn_tile *t = arg;
    const sn_attention *a = &t->block->attention;
    for (int32_t index = first; index < end; index++) {
        int32_t split = index % t->splits;
        attend_heads(t, &t->segment[index / t->splits].piece, (int)((int64_t)a->heads * split / t->splits),
                     (int)((int64_t)a->heads * (split + 1) / t->splits), thread);
    }
}

/* Parts: heads. */
static void make_values(void *arg, int32_t first, int32_t end, int32_t thread)
{
    sn_tile *t = arg;
    const sn_latent *latent = t->block->latent;
    const sn_attention *a = &t->block->attention;
    int64_t from = (int64_t)a->heads * a->value_dim, to = (int64_t)a->heads * latent->value_dim;
    void *scratch = t->head_scratch + thread * t->head_bytes;
    for (int64_t head = first; head < end; head++)
        sn_linear_forward(&latent->v_b[head], t->attended + head * a->value_dim, from, t->rows,
                          t->values + head * latent->value_dim, to, 0, scratch);
}

static void prepare_out(void *arg, int32_t first, int32_t end, int32_t thread)
{
    sn_tile *t = arg;
    int64_t width = t->block->out.cols;
    (void)thread;
    sn_linear_prepare_part(&t->block->out, t->values, width, t->rows, t->prepared, first, end, 0, width);
}

void sn_latent_attention(sn_tile *t, sn_pool *pool)
{
    const sn_block *block = t->block;
    const sn_latent *latent = block->latent;
    int32_t rows = (int32_t)t->rows, heads = block->attention.heads, width = sn_pool_width(pool);
    const float *input = t->normed;
    sn_pool_run(pool, norm_input, t, rows, 1);
    sn_multiply(pool, &latent->kv_a, t->normed, t->hidden, rows, t->qkv + q_width(block), row_width(block), 0,
                t->kv_prepared);
    if (latent->q_a.rows) {
        sn_multiply(pool, &latent->q_a, t->normed, t->hidden, rows, t->q_latent, latent->q_a.rows, 0, t->prepared);
        sn_pool_run(pool, norm_q, t, rows, 1);
        input = t->q_latent;
    }
    if (latent->indexer != NULL)
        sn_index_tokens(t, pool);
    sn_multiply(pool, &latent->q, input, latent->q.cols, rows, t->qkv, row_width(block), 0, t->prepared);
    sn_pool_run(pool, append, t, t->segments, 1);
    sn_pool_run(pool, make_queries, t, heads, 1);
    /* Each range of heads turns every page anew: no more of them than threads. */
    t->splits = t->segments >= 2 * width ? 1 : heads < width ? heads : width;
    sn_pool_run(pool, attend, t, t->segments * t->splits, 1);
    sn_pool_run(pool, make_values, t, heads, 1);
    sn_pool_run(pool, prepare_out, t, rows, 1);
    sn_mixed_out(t, pool, &block->out, t->values, block->out.cols, t->prepared, t->branch);
}
