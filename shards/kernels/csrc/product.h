/* Work over the threads of a pool, matrix products above all. */
#ifndef SN_PRODUCT_H
#define SN_PRODUCT_H

#include "pool.h"
#include "sn.h"

/* sn_linear_run of all tiles; x has been prepared into scratch. */
void sn_multiply(sn_pool *pool, const sn_linear *linear, const float *x, int64_t ldx, int64_t rows, float *y,
                 int64_t ldy, int32_t accumulate, const void *scratch);

/* Hands out parts of one block of memory, 64-byte aligned if it is; with base NULL only *used counts up. */
void *sn_take(void *base, int64_t *used, int64_t bytes);

#endif
