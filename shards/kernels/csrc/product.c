#include "product.h"

#include <stddef.h>

enum { ALIGNMENT = 64 };

typedef struct {
    const sn_linear *linear;
    const float *x;
    int64_t ldx, rows;
    float *y;
    int64_t ldy;
    int32_t accumulate;
    const void *scratch;
} product;

static void multiply_parts(void *arg, int32_t first, int32_t end, int32_t thread)
{
    const product *p = arg;
    (void)thread;
    sn_linear_run(p->linear, p->x, p->ldx, p->rows, p->y, p->ldy, p->accumulate, p->scratch, first, end);
}

void sn_multiply(sn_pool *pool, const sn_linear *linear, const float *x, int64_t ldx, int64_t rows, float *y,
                 int64_t ldy, int32_t accumulate, const void *scratch)
{
    product p = {linear, x, ldx, rows, y, ldy, accumulate, scratch};
    sn_pool_run(pool, multiply_parts, &p, sn_linear_parts(linear), 1);
}

void *sn_take(void *base, int64_t *used, int64_t bytes)
{
    void *at = base ? (char *)base + *used : NULL;
    *used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return at;
}
