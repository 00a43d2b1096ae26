/* Final norm and output head: the rows of many streams at once. */
#include "product.h"
#include "rows.h"

enum { TILE_ROWS = SN_BLOCK_ROWS };

static int64_t lay_out(const sn_linear *head, int64_t rows, void *base, float **normed, void **prepared)
{
    int64_t used = 0;
    *normed = sn_take(base, &used, (int64_t)sizeof(float) * rows * head->cols);
    *prepared = sn_take(base, &used, sn_linear_scratch(head, rows));
    return used;
}

/* Bytes of scratch memory for any number of rows, 64-byte aligned by the caller. */
int64_t sn_head_scratch(const sn_linear *head)
{
    float *normed;
    void *prepared;
    return lay_out(head, TILE_ROWS, 0, &normed, &prepared);
}

/* x (rows, head->cols) -> logits (rows, head->rows), packed. pool may be NULL. */
void sn_head_forward(const sn_linear *head, const sn_norm *norm, sn_pool *pool, const float *x, int64_t rows,
                     float *logits, void *scratch)
{
    int64_t hidden = head->cols, vocab = head->rows;
    for (int64_t first = 0; first < rows; first += TILE_ROWS) {
        int64_t count = rows - first < TILE_ROWS ? rows - first : TILE_ROWS;
        float *normed;
        void *prepared;
        lay_out(head, count, scratch, &normed, &prepared);
        for (int64_t row = 0; row < count; row++)
            sn_norm_row(norm, x + (first + row) * hidden, normed + row * hidden, (int32_t)hidden, 0);
        sn_linear_prepare(head, normed, hidden, count, prepared);
        sn_multiply(pool, head, normed, hidden, count, logits + first * vocab, vocab, 0, prepared);
    }
    sn_pool_rest(pool);
}
