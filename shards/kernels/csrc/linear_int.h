/* What linear*.c share; see sn.h for what the arguments mean. */
#ifndef SN_LINEAR_INT_H
#define SN_LINEAR_INT_H

#include "sn.h"

#define SN_K_GROUPS 8 /* groups of a super-block of SN_SCALE_K and SN_SCALE_K4 */
#define SN_PLANE (SN_TILE * SN_GROUP / 8) /* bytes of a plane of one bit */

static inline int sn_has_super(int kind) { return (kind & SN_SCALE_TYPE) >= SN_SCALE_K; }

/* Scales of a row in a group. */
static inline int sn_scales(int kind) { return kind & SN_HALVES ? 2 : 1; }

static inline int sn_scale_bytes(int kind) {
    return sn_has_super(kind) ? 1 : (kind & SN_SCALE_TYPE) == SN_SCALE_F32 ? 4 : 2;
}

/* Groups that follow what leads them; 0: each has all of its own. */
static inline int sn_led(int kind) { return sn_has_super(kind) ? SN_K_GROUPS : SN_COLS_OF(kind) / SN_GROUP; }

/* Bytes of one group of a tile: integers, scales, minima. */
static inline int sn_group_bytes(int kind) {
    if (SN_COLS_OF(kind) != 0) return SN_BITS_OF(kind) * SN_PLANE;
    int apart = kind & SN_MINIMUM && (kind & SN_SCALE_TYPE) != SN_SCALE_K4;
    return SN_BITS_OF(kind) * SN_PLANE + SN_TILE * sn_scales(kind) * sn_scale_bytes(kind) * (apart ? 2 : 1);
}

/* What leads sn_led groups: d of each row and, with SN_MINIMUM, dmin; or scales, and minima or zero points. */
static inline int sn_super_bytes(int kind) {
    int size = sn_has_super(kind) ? 2 : sn_scale_bytes(kind), zero = (kind & SN_TABLE) == SN_ZERO;
    return sn_led(kind) ? SN_TILE * (size * (kind & SN_MINIMUM ? 2 : 1) + zero) : 0;
}

/* Columns that share a scale of an SN_FLOAT8. */
static inline int sn_float8_cols(const sn_linear *w) {
    const int cols = SN_COLS_OF(w->kind);
    return cols > 0 ? cols : w->cols;
}

/* Bytes of a whole tile. */
int64_t sn_tile_bytes(const sn_linear *w);

/* Part `index` of a stack as a linear of its own, and the number of its first row; rows 0: there is none. */
sn_linear sn_stack_part(const sn_linear *w, int32_t index, int32_t *first_row);

int64_t sn_int_scratch(const sn_linear *w, int64_t n);
void sn_int_prepare(const sn_linear *w, const float *x, int64_t ldx, int64_t n, void *scratch, int64_t first,
                    int64_t end, int64_t first_col, int64_t end_col);
void sn_int_run(const sn_linear *w, int64_t n, float *y, int64_t ldy, int32_t accumulate, const void *scratch,
                int32_t first_tile, int32_t end_tile);
void sn_dense_run(const sn_linear *w, const float *x, int64_t ldx, int64_t n, float *y, int64_t ldy,
                  int32_t accumulate, int32_t first_tile, int32_t end_tile);
void sn_float8_run(const sn_linear *w, const float *x, int64_t ldx, int64_t n, float *y, int64_t ldy,
                   int32_t accumulate, int32_t first_tile, int32_t end_tile);

/* Output tile `tile` of `rows` rows, from their sums (rows, SN_TILE). */
static inline void sn_put_rows(const sn_linear *w, int32_t tile, int rows, const float *sums, float *y, int64_t ldy,
                               int32_t accumulate) {
    int first = tile * SN_TILE, count = w->rows - first < SN_TILE ? w->rows - first : SN_TILE;
    for (int m = 0; m < rows; m++, sums += SN_TILE) {
        float *out = y + m * ldy + first;
        for (int r = 0; r < count; r++) {
            float value = w->bias ? sums[r] + w->bias[first + r] : sums[r];
            out[r] = accumulate ? out[r] + value : value;
        }
    }
}

#endif
