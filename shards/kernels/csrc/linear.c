/* Which kernel does a linear. */
#include "linear_int.h"

static int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }

static int is_integer(int kind) { return (kind & SN_BASE) == SN_INT; }

/* Whether a product reads activations in fixed point. */
static int reads_digits(const sn_linear *w) {
    if ((w->kind & SN_BASE) != SN_STACK) return is_integer(w->kind);
    for (int i = 0; i < SN_MOST_PARTS; i++)
        if (w->parts[i].rows && is_integer(w->parts[i].kind)) return 1;
    return 0;
}

sn_linear sn_stack_part(const sn_linear *w, int32_t index, int32_t *first_row) {
    sn_linear part = {.variant = w->variant, .cols = w->cols, .weights = w->weights, .bias = w->bias};
    *first_row = 0;
    for (int32_t i = 0; i <= index; i++) {
        int64_t before = i ? sn_packed_bytes(&part) : 0;
        *first_row += part.rows;
        if (part.weights) part.weights = (const uint8_t *)part.weights + before;
        if (part.bias) part.bias += part.rows;
        part.rows = i < SN_MOST_PARTS ? w->parts[i].rows : 0;
        part.kind = part.rows ? w->parts[i].kind : 0;
    }
    return part;
}

int64_t sn_linear_scratch(const sn_linear *w, int64_t n) { return reads_digits(w) ? sn_int_scratch(w, n) : 0; }

int32_t sn_linear_parts(const sn_linear *w) {
    if ((w->kind & SN_BASE) != SN_STACK) return (w->rows + SN_TILE - 1) / SN_TILE;
    int32_t tiles = 0;
    for (int i = 0; i < SN_MOST_PARTS; i++) tiles += (w->parts[i].rows + SN_TILE - 1) / SN_TILE;
    return tiles;
}

int32_t sn_linear_first_row(const sn_linear *w, int32_t tile) {
    if ((w->kind & SN_BASE) != SN_STACK) return least(tile * SN_TILE, w->rows);
    int32_t row = 0;
    for (int i = 0; i < SN_MOST_PARTS; i++) {
        int32_t rows = w->parts[i].rows, tiles = (rows + SN_TILE - 1) / SN_TILE;
        if (tile < tiles) return row + tile * SN_TILE;
        row += rows;
        tile -= tiles;
    }
    return row;
}

void sn_linear_prepare_part(const sn_linear *w, const float *x, int64_t ldx, int64_t n, void *scratch,
                            int64_t first, int64_t end, int64_t first_col, int64_t end_col) {
    if (reads_digits(w)) sn_int_prepare(w, x, ldx, n, scratch, first, end, first_col, end_col);
}

void sn_linear_prepare(const sn_linear *w, const float *x, int64_t ldx, int64_t n, void *scratch) {
    sn_linear_prepare_part(w, x, ldx, n, scratch, 0, n, 0, w->cols);
}

static void run_stack(const sn_linear *w, const float *x, int64_t ldx, int64_t n, float *y, int64_t ldy,
                      int32_t accumulate, const void *scratch, int32_t first_tile, int32_t end_tile) {
    int32_t row;
    sn_linear part;
    for (int32_t i = 0; end_tile > 0 && (part = sn_stack_part(w, i, &row)).rows; i++) {
        int32_t tiles = sn_linear_parts(&part);
        if (first_tile < tiles)
            sn_linear_run(&part, x, ldx, n, y + row, ldy, accumulate, scratch, first_tile, least(end_tile, tiles));
        first_tile = first_tile > tiles ? first_tile - tiles : 0;
        end_tile -= tiles;
    }
}

void sn_linear_run(const sn_linear *w, const float *x, int64_t ldx, int64_t n, float *y, int64_t ldy,
                   int32_t accumulate, const void *scratch, int32_t first_tile, int32_t end_tile) {
    switch (w->kind & SN_BASE) {
    case SN_STACK:
        run_stack(w, x, ldx, n, y, ldy, accumulate, scratch, first_tile, end_tile);
        return;
    case SN_INT:
        sn_int_run(w, n, y, ldy, accumulate, scratch, first_tile, end_tile);
        return;
    case SN_FLOAT8:
        sn_float8_run(w, x, ldx, n, y, ldy, accumulate, first_tile, end_tile);
        return;
    default:
        sn_dense_run(w, x, ldx, n, y, ldy, accumulate, first_tile, end_tile);
    }
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
