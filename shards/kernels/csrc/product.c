#include "product.h"

#include <stddef.h>

enum { ALIGNMENT = 64, TURNS = 4 };

typedef struct {
    const sn_linear *linear;
    const float *x;
    int64_t ldx, rows;
    float *y;
    int64_t ldy;
    int32_t accumulate;
    const void *scratch;
} product;

/* Each thread gets about TURNS turns: few enough to be cheap to hand out, small enough that a thread which is
   held up does not hold up the rest for long. */
void sn_run(sn_pool *pool, sn_job job, void *arg, int64_t parts)
{
    int64_t grain = parts / (TURNS * sn_pool_width(pool));
    sn_pool_run(pool, job, arg, (int32_t)parts, grain > 1 ? (int32_t)grain : 1);
}

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
    sn_run(pool, multiply_parts, &p, sn_linear_parts(linear));
}

void *sn_take(void *base, int64_t *used, int64_t bytes)
{
    void *at = base ? (char *)base + *used : NULL;
    *used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return at;
}
