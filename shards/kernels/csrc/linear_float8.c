/* Floats of eight bits (e4m3: sign, four bits of exponent, three of fraction) with scales, multiplied in float32.
 *
 * SN_GROUP columns are summed at a time, even and odd ones apart, by fused multiply-adds in the order of the columns;
 * even plus odd, times the scale, is added to the row's sum. So the bits do not depend on how many columns share a scale.
 */
#include "linear_int.h"
#include "linear_simd.h"

#define PREFETCH 8192 /* bytes ahead: the hardware's own stops at each page; a third faster than half of it */
#define STEP 2        /* vectors of outputs that are summed at a time */
#define TOGETHER (SN_REGISTERS == 32 ? 6 : 3) /* input rows whose sums are held in registers */
#define BYTES (SN_TILE * SN_GROUP)            /* of the weights that are summed at a time */

/* One input row: weights go from memory to registers. */
SN_INLINE void add_row(const uint8_t *stored, const float *x, const vf *scale, float *sums) {
    vf even[SN_VECTORS], odd[SN_VECTORS];
    for (int v = 0; v < SN_VECTORS; v++) even[v] = odd[v] = vf_set1(0.0f);
    for (int col = 0; col < SN_GROUP; col += 2, stored += 2 * SN_TILE) {
        const vf first = vf_set1(x[col]), second = vf_set1(x[col + 1]);
        vf w_even[SN_VECTORS], w_odd[SN_VECTORS];
        for (int v = 0; v < SN_VECTORS; v += 2) vf_load_e4m3(stored + 2 * v * SN_LANES, w_even + v, w_odd + v);
        for (int v = 0; v < SN_VECTORS; v++) {
            even[v] = vf_fma(w_even[v], first, even[v]);
            odd[v] = vf_fma(w_odd[v], second, odd[v]);
        }
    }
    for (int v = 0; v < SN_VECTORS; v++) {
        float *sum = sums + v * SN_LANES;
        vf_store(sum, vf_fma(vf_add(even[v], odd[v]), scale[v], vf_load(sum)));
    }
}

/* `count` input rows, a constant, and weights that have been widened: the same sums. */
SN_INLINE void add_rows(const float *w, const float *x, int64_t ldx, const vf *scale, float *sums, const int count) {
    for (int v0 = 0; v0 < SN_VECTORS; v0 += STEP) {
        vf sum[2][TOGETHER][STEP];
        for (int m = 0; m < count; m++)
            for (int v = 0; v < STEP; v++) sum[0][m][v] = sum[1][m][v] = vf_set1(0.0f);
        for (int col = 0; col < SN_GROUP; col += 2)
            for (int odd = 0; odd < 2; odd++)
                for (int m = 0; m < count; m++) {
                    const vf value = vf_set1(x[m * ldx + col + odd]);
                    for (int v = 0; v < STEP; v++) {
                        const float *column = w + (col + odd) * SN_TILE + (v0 + v) * SN_LANES;
                        sum[odd][m][v] = vf_fma(vf_load(column), value, sum[odd][m][v]);
                    }
                }
        for (int m = 0; m < count; m++)
            for (int v = 0; v < STEP; v++) {
                float *out = sums + m * SN_TILE + (v0 + v) * SN_LANES;
                vf_store(out, vf_fma(vf_add(sum[0][m][v], sum[1][m][v]), scale[v0 + v], vf_load(out)));
            }
    }
}

static void add_group(const uint8_t *stored, const float *x, int64_t ldx, int rows, const vf *scale, float *sums) {
    if (rows == 1) {
        add_row(stored, x, scale, sums);
        return;
    }
    float w[BYTES] __attribute__((aligned(64)));
    for (int col = 0; col < SN_GROUP; col += 2)
        for (int v = 0; v < SN_VECTORS; v += 2) {
            vf even[2], odd[2];
            vf_load_e4m3(stored + col * SN_TILE + 2 * v * SN_LANES, even, odd);
            for (int i = 0; i < 2; i++) {
                vf_store(w + col * SN_TILE + (v + i) * SN_LANES, even[i]);
                vf_store(w + (col + 1) * SN_TILE + (v + i) * SN_LANES, odd[i]);
            }
        }
    int m = 0;
    for (; m + TOGETHER <= rows; m += TOGETHER)
        add_rows(w, x + m * ldx, ldx, scale, sums + m * SN_TILE, TOGETHER);
    for (; TOGETHER > 4 && m + 4 <= rows; m += 4) add_rows(w, x + m * ldx, ldx, scale, sums + m * SN_TILE, 4);
    for (; m + 2 <= rows; m += 2) add_rows(w, x + m * ldx, ldx, scale, sums + m * SN_TILE, 2);
    for (; m < rows; m++) add_rows(w, x + m * ldx, ldx, scale, sums + m * SN_TILE, 1);
}

/* sums (rows, SN_TILE) of one tile and at most SN_BLOCK_ROWS input rows. */
static void tile_rows(const sn_linear *w, const uint8_t *stored, const float *x, int64_t ldx, int rows, float *sums) {
    float padded[SN_BLOCK_ROWS * SN_GROUP];
    vf scale[SN_VECTORS];
    const int cols = sn_float8_cols(w);
    memset(sums, 0, sizeof(float) * SN_TILE * (size_t)rows);
    for (int col = 0; col < w->cols; col += SN_GROUP, stored += BYTES) {
        if (col % cols == 0) {
            for (int v = 0; v < SN_VECTORS; v++) /* weights are read times 1/256 */
                scale[v] = vf_mul(vf_load_scale(stored, v * SN_LANES, w->kind & SN_SCALE_TYPE), vf_set1(256.0f));
            stored += SN_TILE * sn_scale_bytes(w->kind);
        }
        for (int ahead = 0; ahead < BYTES; ahead += 64) __builtin_prefetch(stored + PREFETCH + ahead);
        if (w->cols - col >= SN_GROUP) {
            add_group(stored, x + col, ldx, rows, scale, sums);
        } else {
            memset(padded, 0, sizeof(float) * SN_GROUP * (size_t)rows);
            for (int m = 0; m < rows; m++)
                memcpy(padded + m * SN_GROUP, x + m * ldx + col, sizeof(float) * (size_t)(w->cols - col));
            add_group(stored, padded, SN_GROUP, rows, scale, sums);
        }
    }
}

void sn_float8_run(const sn_linear *w, const float *x, int64_t ldx, int64_t n, float *y, int64_t ldy,
                   int32_t accumulate, int32_t first_tile, int32_t end_tile) {
    float sums[SN_BLOCK_ROWS * SN_TILE] __attribute__((aligned(64)));
    for (int64_t row = 0; row < n; row += SN_BLOCK_ROWS) {
        int rows = (int)(n - row < SN_BLOCK_ROWS ? n - row : SN_BLOCK_ROWS);
        for (int32_t tile = first_tile; tile < end_tile; tile++) {
            const uint8_t *stored = (const uint8_t *)w->weights + tile * sn_tile_bytes(w);
            tile_rows(w, stored, x + row * ldx, ldx, rows, sums);
            sn_put_rows(w, tile, rows, sums, y + row * ldy, ldy, accumulate);
        }
    }
}
