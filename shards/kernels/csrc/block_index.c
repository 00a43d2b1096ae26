/* Which tokens the rows of a tile see, where an indexer chooses them. */
#include <stddef.h>
#include <string.h>

#include "product.h"
#include "tile.h"

/* A row of t->index: q of all heads, k, the heads' weights. */
static int64_t q_width(const sn_indexer *indexer) { return indexer->q.rows; }

static int64_t row_width(const sn_indexer *indexer) { return q_width(indexer) + indexer->dim + indexer->heads; }

int64_t sn_index_floats(const sn_indexer *indexer) { return row_width(indexer); }

static void prepare(void *arg, int32_t first, int32_t end, int32_t thread)
{
    sn_tile *t = arg;
    const sn_indexer *indexer = t->block->latent->indexer;
    (void)thread;
    sn_linear_prepare_part(&indexer->q, t->q_latent, indexer->q.cols, t->rows, t->index_prepared[0], first, end, 0,
                           indexer->q.cols);
    sn_linear_prepare_part(&indexer->k, t->normed, t->hidden, t->rows, t->index_prepared[1], first, end, 0, t->hidden);
    sn_linear_prepare_part(&indexer->weights, t->normed, t->hidden, t->rows, t->index_prepared[2], first, end, 0,
                           t->hidden);
}

/* Parts: segments, whose index keys are stored. */
static void append(void *arg, int32_t first, int32_t end, int32_t thread)
{
    sn_tile *t = arg;
    const sn_block *block = t->block;
    const sn_indexer *indexer = block->latent->indexer;
    sn_attention index = sn_index_attention(indexer->dim);
    sn_kv kv = sn_index_kv(&block->attention, t->kv);
    int64_t width = row_width(indexer);
    (void)thread;
    for (int32_t number = first; number < end; number++) {
        const sn_segment *s = &t->segment[number];
        for (int64_t i = 0; i < s->piece.count; i++) {
            float *q = t->index + (s->piece.row + i) * width, *key = q + q_width(indexer);
            sn_norm_row(&indexer->norm, key, key, indexer->dim, 0);
            if (block->rope >= 0) {
                sn_rotation r = sn_rotation_of(t, s, i);
                sn_rotate(q, indexer->dim, indexer->heads, r.cos, r.sin, block->rotary);
                sn_rotate(key, 0, 1, r.cos, r.sin, block->rotary);
            }
        }
        sn_kv_append(&index, &kv, &s->piece, t->number, t->index + q_width(indexer), NULL, width, 0, 1);
    }
}

/* The piece of a row of the tile, and how many tokens the row could see. */
static const sn_piece *piece_of(const sn_tile *t, int64_t row, int64_t *tokens)
{
    const sn_segment *s = t->segment;
    while (row >= s->piece.row + s->piece.count)
        s++;
    *tokens = s->piece.start + row - s->piece.row + 1;
    return &s->piece;
}

/* Parts: ranges of pages of each row from t->choosing on. */
static void score(void *arg, int32_t first, int32_t end, int32_t thread)
{
    sn_tile *t = arg;
    const sn_indexer *indexer = t->block->latent->indexer;
    sn_attention index = sn_index_attention(indexer->dim);
    sn_kv kv = sn_index_kv(&t->block->attention, t->kv);
    float *scratch = (float *)(t->index_scratch + thread * t->index_bytes);
    for (int32_t part = first; part < end; part++) {
        int64_t at = part / t->splits, split = part % t->splits, tokens;
        const sn_piece *piece = piece_of(t, t->choosing + at, &tokens);
        const float *q = t->index + (t->choosing + at) * row_width(indexer);
        int64_t pages = (tokens + SN_PAGE - 1) / SN_PAGE;
        if (tokens > t->block->latent->top)
            sn_index_scores(&index, &kv, piece, t->number, pages * split / t->splits, pages * (split + 1) / t->splits, q,
                            q + q_width(indexer) + indexer->dim, indexer->heads,
                            t->choice->scores + at * t->choice->longest, scratch);
    }
}

/* Orders as the numbers do; -0 is 0. */
static uint32_t rank_of(float score)
{
    uint32_t bits;
    score += 0.0f;
    memcpy(&bits, &score, 4);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* The numbers of the `top` largest of n >= top scores, ascending; of equal ones the first. */
static void take_best(const float *scores, int64_t n, int32_t top, int32_t *out)
{
    /* Bit by bit from the highest on: the rank of the last that is chosen, and how many of that rank are. */
    uint32_t least = 0, known = 0;
    int64_t left = top;
    for (int shift = 24; shift >= 0; shift -= 8) {
        int64_t count[256] = {0};
        for (int64_t i = 0; i < n; i++) {
            uint32_t rank = rank_of(scores[i]);
            if ((rank & known) == least) count[rank >> shift & 255]++;
        }
        uint32_t digit = 255;
        for (; left > count[digit]; digit--) left -= count[digit];
        least |= digit << shift;
        known |= 255u << shift;
    }
    for (int64_t i = 0; i < n; i++) {
        uint32_t rank = rank_of(scores[i]);
        if (rank > least || (rank == least && left-- > 0)) *out++ = (int32_t)i;
    }
}

/* Parts: rows from t->choosing on. */
static void choose(void *arg, int32_t first, int32_t end, int32_t thread)
{
    sn_tile *t = arg;
    const sn_choice *choice = t->choice;
    (void)thread;
    for (int32_t at = first; at < end; at++) {
        int64_t tokens;
        piece_of(t, t->choosing + at, &tokens);
        if (tokens > t->block->latent->top)
            take_best(choice->scores + at * choice->longest, tokens, t->block->latent->top,
                      choice->tokens + (t->at + t->choosing + at) * choice->most);
    }
}

void sn_index_tokens(sn_tile *t, sn_pool *pool)
{
    const sn_indexer *indexer = t->block->latent->indexer;
    int32_t rows = (int32_t)t->rows, width = sn_pool_width(pool);
    int64_t floats = row_width(indexer), most = 0;
    sn_pool_run(pool, prepare, t, rows, 1);
    sn_multiply(pool, &indexer->q, t->q_latent, indexer->q.cols, rows, t->index, floats, 0, t->index_prepared[0]);
    sn_multiply(pool, &indexer->k, t->normed, t->hidden, rows, t->index + q_width(indexer), floats, 0,
                t->index_prepared[1]);
    sn_multiply(pool, &indexer->weights, t->normed, t->hidden, rows, t->index + q_width(indexer) + indexer->dim, floats,
                0, t->index_prepared[2]);
    sn_pool_run(pool, append, t, t->segments, 1);
    for (int32_t number = 0; number < t->segments; number++) {
        int64_t tokens = t->segment[number].piece.start + t->segment[number].piece.count;
        most = tokens > most ? tokens : most;
    }
    for (t->choosing = 0; t->choosing < rows && most > t->block->latent->top; t->choosing += width) {
        int32_t some = rows - t->choosing < width ? (int32_t)(rows - t->choosing) : width;
        t->splits = some < width ? width : 1;
        sn_pool_run(pool, score, t, some * t->splits, 1);
        sn_pool_run(pool, choose, t, some, 1);
    }
}
