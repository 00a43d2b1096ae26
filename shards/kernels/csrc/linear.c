/* Which kernel does a linear. */
#include "linear_int.h"

static int is_dense(const sn_linear *w) { return (w->kind & SN_BASE) <= SN_BF16; }

int64_t sn_linear_scratch(const sn_linear *w, int64_t n) { return is_dense(w) ? 0 : sn_int_scratch(w, n); }

int32_t sn_linear_parts(const sn_linear *w) { return (w->rows + SN_TILE - 1) / SN_TILE; }

void sn_linear_prepare_part(const sn_linear *w, const float *x, int64_t ldx, int64_t n, void *scratch,
                            int64_t first, int64_t end, int64_t first_col, int64_t end_col) {
    if (!is_dense(w)) sn_int_prepare(w, x, ldx, n, scratch, first, end, first_col, end_col);
}

void sn_linear_prepare(const sn_linear *w, const float *x, int64_t ldx, int64_t n, void *scratch) {
    sn_linear_prepare_part(w, x, ldx, n, scratch, 0, n, 0, w->cols);
}

void sn_linear_run(const sn_linear *w, const float *x, int64_t ldx, int64_t n, float *y, int64_t ldy,
                   int32_t accumulate, const void *scratch, int32_t first_tile, int32_t end_tile) {
    if (is_dense(w))
        sn_dense_run(w, x, ldx, n, y, ldy, accumulate, first_tile, end_tile);
    else
        sn_int_run(w, n, y, ldy, accumulate, scratch, first_tile, end_tile);
}

void sn_linear_forward(const sn_linear *w, const float *x, int64_t ldx, int64_t n, float *y, int64_t ldy,
                       int32_t accumulate, void *scratch) {
    for (int64_t row = 0; row < n; row += SN_BLOCK_ROWS) {
        int64_t rows = n - row < SN_BLOCK_ROWS ? n - row : SN_BLOCK_ROWS;
        sn_linear_prepare(w, x + row * ldx, ldx, rows, scratch);
        sn_linear_run(w, x + row * ldx, ldx, rows, y + row * ldy, ldy, accumulate, scratch, 0,
                      sn_linear_parts(w));
    }
}
