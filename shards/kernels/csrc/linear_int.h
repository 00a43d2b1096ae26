/* What linear*.c share; see sn.h for what the arguments mean. */
#ifndef SN_LINEAR_INT_H
#define SN_LINEAR_INT_H

#include "sn.h"

#define SN_K_GROUPS 8 /* groups of a super-block of Q4_K or Q6_K */
#define SN_INT6_BYTES (SN_TILE * SN_GROUP / 4 * 3) /* of a group's integers */

static inline int sn_scale_bytes(int kind) { return (kind & SN_SCALE_TYPE) == SN_SCALE_F32 ? 4 : 2; }

/* Bytes of one group of a tile: integers, scales, minima. */
int64_t sn_group_bytes(int kind);

/* What leads SN_K_GROUPS groups: d of each row and, with SN_MINIMUM, dmin. 0 without SN_SCALE_K. */
static inline int sn_super_bytes(int kind) {
    return (kind & SN_SCALE_TYPE) != SN_SCALE_K ? 0 : 2 * SN_TILE * (kind & SN_MINIMUM ? 2 : 1);
}

/* Bytes of a whole tile. */
int64_t sn_tile_bytes(const sn_linear *w);

int64_t sn_int_scratch(const sn_linear *w, int64_t n);
void sn_int_prepare(const sn_linear *w, const float *x, int64_t ldx, int64_t n, void *scratch, int64_t first,
                    int64_t end, int64_t first_col, int64_t end_col);
void sn_int_run(const sn_linear *w, int64_t n, float *y, int64_t ldy, int32_t accumulate, const void *scratch,
                int32_t first_tile, int32_t end_tile);
void sn_dense_run(const sn_linear *w, const float *x, int64_t ldx, int64_t n, float *y, int64_t ldy,
                  int32_t accumulate, int32_t first_tile, int32_t end_tile);

#endif
