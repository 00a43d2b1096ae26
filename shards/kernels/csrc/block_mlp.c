/* The second half of a block. */
#include <stddef.h>

#include "product.h"
#include "tile.h"

void sn_mlp_inputs(sn_tile *t, int32_t first, int32_t end)
{
    const sn_block *block = t->block;
    int32_t hidden = t->hidden;
    for (int64_t row = first; row < end; row++) {
        const float *x = t->x + row * hidden;
        sn_norm_row(&block->mlp_norm, x, t->mlp_normed + row * hidden, hidden, 0);
        if (block->experts_norm.kind != SN_NO_NORM)
            sn_norm_row(&block->experts_norm, x, t->experts_normed + row * hidden, hidden, 0);
        if (block->router_norm.kind != SN_NO_NORM)
            sn_norm_row(&block->router_norm, x, t->router_normed + row * hidden, hidden, 0);
    }
    if (block->mlp.inner)
        sn_linear_prepare_part(&block->mlp.gate_up, t->mlp_normed, hidden, t->rows, t->mlp_prepared, first, end, 0,
                               hidden);
}

/* Parts: tiles of the gate with the same tiles of what goes through it; all of them where they do not lie alike. */
static void activate(void *arg, int32_t first, int32_t end, int32_t thread)
{
    sn_tile *t = arg;
    const sn_mlp *mlp = &t->block->mlp;
    int64_t hidden = t->hidden, inner = mlp->inner, width = mlp->gate_up.rows, tiles = inner / SN_TILE;
    int64_t first_col = (int64_t)first * SN_TILE, columns = (int64_t)(end - first) * SN_TILE;
    (void)thread;
    if (inner % SN_TILE) {
        first_col = 0, columns = inner;
        sn_linear_run(&mlp->gate_up, t->mlp_normed, hidden, t->rows, t->gate_up, width, 0, t->mlp_prepared, 0,
                      sn_linear_parts(&mlp->gate_up));
    } else {
        sn_linear_run(&mlp->gate_up, t->mlp_normed, hidden, t->rows, t->gate_up, width, 0, t->mlp_prepared, first,
                      end);
        if (mlp->gated)
            sn_linear_run(&mlp->gate_up, t->mlp_normed, hidden, t->rows, t->gate_up, width, 0, t->mlp_prepared,
                          (int32_t)tiles + first, (int32_t)tiles + end);
    }
    for (int64_t row = 0; row < t->rows; row++) {
        float *at = t->gate_up + row * width + first_col;
        sn_activate(&mlp->activation, at, mlp->gated ? at + inner : NULL, (int32_t)columns);
    }
    sn_linear_prepare_part(&mlp->down, t->gate_up, width, t->rows, t->gated, 0, t->rows, first_col,
                           first_col + columns);
}

static void scale(const sn_block *block, float *x, int32_t hidden)
{
    for (int32_t i = 0; block->scalar != 1.0f && i < hidden; i++)
        x[i] *= block->scalar;
}

/* Parts: rows, whose MLP's and experts' outputs are in branch and experts_out. */
static void finish(void *arg, int32_t first, int32_t end, int32_t thread)
{
    const sn_tile *t = arg;
    const sn_block *block = t->block;
    int32_t hidden = t->hidden;
    int both = block->mlp.inner && block->experts != NULL;
    (void)thread;
    for (int64_t row = first; row < end; row++) {
        float *x = t->x + row * hidden, *branch = t->branch + row * hidden, *experts = t->experts_out + row * hidden;
        if (both) {
            sn_norm_row(&block->dense_out_norm, branch, branch, hidden, 0);
            sn_norm_row(&block->experts_out_norm, experts, experts, hidden, 0);
            for (int32_t i = 0; i < hidden; i++)
                branch[i] += experts[i];
        }
        if (!sn_adds_mlp(block)) {
            for (int32_t i = 0; block->mlp_factor != 1.0f && i < hidden; i++)
                branch[i] *= block->mlp_factor;
            sn_norm_row(&block->mlp_out_norm, branch, branch, hidden, 0);
            for (int32_t i = 0; i < hidden; i++)
                x[i] += block->residual_multiplier * branch[i];
        }
        if (!block->side)
            scale(block, x, hidden);
    }
}

void sn_block_mlp(sn_tile *t, sn_pool *pool)
{
    const sn_block *block = t->block;
    const sn_mlp *mlp = &block->mlp;
    int adds = sn_adds_mlp(block);
    if (mlp->inner) {
        sn_pool_run(pool, activate, t, mlp->inner % SN_TILE ? 1 : mlp->inner / SN_TILE, 1);
        sn_multiply(pool, &mlp->down, t->gate_up, mlp->gate_up.rows, t->rows, adds ? t->x : t->branch, t->hidden, adds,
                    t->gated);
    }
    if (block->experts != NULL) {
        const float *read = block->experts_norm.kind != SN_NO_NORM ? t->experts_normed : t->mlp_normed;
        sn_experts_forward(pool, block->experts, read,
                           block->router_norm.kind != SN_NO_NORM ? t->router_normed : read, t->rows,
                           mlp->inner ? t->experts_out : t->branch, t->experts_scratch);
    }
    if (!adds || (block->scalar != 1.0f && !block->side))
        sn_pool_run(pool, finish, t, (int32_t)t->rows, 1);
}

static void prepare_side(void *arg, int32_t first, int32_t end, int32_t thread)
{
    sn_tile *t = arg;
    (void)thread;
    sn_linear_prepare_part(&t->block->side_gate, t->x, t->hidden, t->rows, t->side_prepared, first, end, 0, t->hidden);
}

/* Parts: rows. */
static void gate_side(void *arg, int32_t first, int32_t end, int32_t thread)
{
    sn_tile *t = arg;
    const sn_block *block = t->block;
    int32_t side = block->side;
    (void)thread;
    for (int64_t row = first; row < end; row++)
        sn_activate(&block->side_activation, t->side + row * side, t->beside + row * t->beside_ld, side);
    sn_linear_prepare_part(&block->side_projection, t->side, side, t->rows, t->side_gated, first, end, 0, side);
}

/* Parts: rows, whose projections are in branch. */
static void add_side(void *arg, int32_t first, int32_t end, int32_t thread)
{
    const sn_tile *t = arg;
    const sn_block *block = t->block;
    int32_t hidden = t->hidden;
    (void)thread;
    for (int64_t row = first; row < end; row++) {
        float *x = t->x + row * hidden, *branch = t->branch + row * hidden;
        sn_norm_row(&block->side_norm, branch, branch, hidden, 0);
        for (int32_t i = 0; i < hidden; i++)
            x[i] += branch[i];
        scale(block, x, hidden);
    }
}

void sn_block_side(sn_tile *t, sn_pool *pool)
{
    const sn_block *block = t->block;
    int32_t rows = (int32_t)t->rows;
    sn_pool_run(pool, prepare_side, t, rows, 1);
    sn_multiply(pool, &block->side_gate, t->x, t->hidden, rows, t->side, block->side, 0, t->side_prepared);
    sn_pool_run(pool, gate_side, t, rows, 1);
    sn_multiply(pool, &block->side_projection, t->side, block->side, rows, t->branch, t->hidden, 0, t->side_gated);
    sn_pool_run(pool, add_side, t, rows, 1);
}
