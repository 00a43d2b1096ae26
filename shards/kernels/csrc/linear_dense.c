/* Float weights: a fused multiply-add per column, in the order of the columns, in float32. */
#include "linear_int.h"
#include "linear_simd.h"

#if SN_LANES == 16 && SN_REGISTERS == 32
#define TOGETHER 8 /* input rows whose sums are held in registers */
#else
#define TOGETHER 4
#endif

SN_INLINE vf load_weights(const uint8_t *p, int index, const int kind) {
    if (kind == SN_F32) return vf_load((const float *)p + index);
    const uint16_t *half = (const uint16_t *)p + index;
    return kind == SN_F16 ? vf_load_f16(half) : vf_load_bf16(half);
}

/* `count` rows of x times one tile: sums (count, SN_TILE). `count` and `kind` are constants. */
SN_INLINE void tile_rows(const uint8_t *w, int cols, const float *x, int64_t ldx, float *sums, const int count,
                         const int kind) {
    const int bytes = SN_TILE * (kind == SN_F32 ? 4 : 2);
    vf sum[TOGETHER][SN_VECTORS];
    for (int m = 0; m < count; m++)
        for (int v = 0; v < SN_VECTORS; v++) sum[m][v] = vf_set1(0.0f);
    for (int col = 0; col < cols; col++, w += bytes) {
        vf column[SN_VECTORS];
        for (int v = 0; v < SN_VECTORS; v++) column[v] = load_weights(w, v * SN_LANES, kind);
        for (int m = 0; m < count; m++) {
            vf value = vf_set1(x[m * ldx + col]);
            for (int v = 0; v < SN_VECTORS; v++) sum[m][v] = vf_fma(column[v], value, sum[m][v]);
        }
    }
    for (int m = 0; m < count; m++)
        for (int v = 0; v < SN_VECTORS; v++) vf_store(sums + m * SN_TILE + v * SN_LANES, sum[m][v]);
}

#define KERNEL(name, kind)                                                                                       \
    static void name(const uint8_t *w, int cols, const float *x, int64_t ldx, float *sums, int count) {           \
        if (count == TOGETHER)                                                                                    \
            tile_rows(w, cols, x, ldx, sums, TOGETHER, kind);                                                     \
        else if (count >= 4)                                                                                      \
            tile_rows(w, cols, x, ldx, sums, 4, kind);                                                            \
        else if (count >= 2)                                                                                      \
            tile_rows(w, cols, x, ldx, sums, 2, kind);                                                            \
        else                                                                                                      \
            tile_rows(w, cols, x, ldx, sums, 1, kind);                                                            \
    }
KERNEL(dense_f32, SN_F32)
KERNEL(dense_f16, SN_F16)
KERNEL(dense_bf16, SN_BF16)

void sn_dense_run(const sn_linear *w, const float *x, int64_t ldx, int64_t n, float *y, int64_t ldy,
                  int32_t accumulate, int32_t first_tile, int32_t end_tile) {
    int kind = w->kind & SN_BASE;
    int64_t tile_bytes = (int64_t)w->cols * SN_TILE * (kind == SN_F32 ? 4 : 2);
    float sums[TOGETHER * SN_TILE] __attribute__((aligned(64)));
    for (int32_t tile = first_tile; tile < end_tile; tile++) {
        const uint8_t *stored = (const uint8_t *)w->weights + tile * tile_bytes;
        for (int64_t row = 0; row < n;) {
            int64_t left = n - row;
            int together = left >= TOGETHER ? TOGETHER : left >= 4 ? 4 : left >= 2 ? 2 : 1;
            const float *rows = x + row * ldx;
            if (kind == SN_F32)
                dense_f32(stored, w->cols, rows, ldx, sums, together);
            else if (kind == SN_F16)
                dense_f16(stored, w->cols, rows, ldx, sums, together);
            else
                dense_bf16(stored, w->cols, rows, ldx, sums, together);
            sn_put_rows(w, tile, together, sums, y + row * ldy, ldy, accumulate);
            row += together;
        }
    }
}
