/* A block at a time, and within it TILE_ROWS rows at a time, so that what passes from step to step stays in the
   cache: rows only look at rows before them, whose keys and values are in the pages by then. Experts take more rows
   together, as each reads its weights once for all of them. Threads share a linear by its output tiles, norms by rows,
   attention by sequences and, of few, by KV heads, a state by sequences and heads. Threads wait for each other five times a
   block and for the norms: whoever has computed some outputs goes on with them as far as nobody else's are needed. Every row's result is the same
   bits however the rows are batched, cut and shared. */
#include "block.h"

#include <stddef.h>

#include "product.h"
#include "tile.h"

enum {
    TILE_ROWS = SN_BLOCK_ROWS, /* 0.8 MB of gate and up at 1536 intermediate */
    EXPERTS_ROWS = 256,        /* 16 a expert where each takes one of 16 */
};

static int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }

static int64_t smallest(int64_t a, int64_t b) { return a < b ? a : b; }

/* Rows that go through a block's second half together. */
static int64_t group_rows(const sn_block *block) { return block->experts != NULL ? EXPERTS_ROWS : TILE_ROWS; }

/* What one row needs, over all blocks, in floats; and bytes of what depends on the rows otherwise. */
typedef struct {
    int64_t group; /* rows of a group */
    int64_t qkv, q_latent, queries, attended, values, gate_up;
    int64_t prepared, kv_prepared, mlp_prepared, gated, head, attend, experts;
    int64_t side, side_prepared, side_gated;
    int64_t index, index_prepared[3], index_scratch;
    int64_t branch, kept, parallel, experts_out, experts_normed, router_normed; /* 1 where any block needs it */
    sn_state_needs state;
} needs;

static void need(int64_t *most, int64_t wanted) { *most = largest(*most, wanted); }

/* Of a block whose rows do not see all tokens. */
static void need_index(needs *n, const sn_block *block, int64_t rows)
{
    const sn_indexer *indexer = block->latent->indexer;
    need(&n->index_scratch, sn_chosen_scratch(&block->attention, block->latent->top));
    if (indexer == NULL)
        return;
    const sn_linear *linears[] = {&indexer->q, &indexer->k, &indexer->weights};
    for (int i = 0; i < 3; i++)
        need(&n->index_prepared[i], sn_linear_scratch(linears[i], rows));
    need(&n->index, sn_index_floats(indexer));
    need(&n->index_scratch, (int64_t)sizeof(float) * SN_PAGE * (indexer->heads + indexer->dim));
}

static void need_attention(needs *n, const sn_block *block, int64_t rows)
{
    const sn_attention *a = &block->attention;
    const sn_latent *latent = block->latent;
    if (!a->heads)
        return;
    need(&n->attended, (int64_t)a->heads * a->value_dim);
    need(&n->attend, sn_attend_scratch(a));
    need(&n->prepared, sn_linear_scratch(&block->out, rows));
    if (latent == NULL) {
        need(&n->qkv, block->qkv.rows + (block->keys_as_values ? (int64_t)a->kv_heads * a->value_dim : 0));
        need(&n->prepared, sn_linear_scratch(&block->qkv, rows));
        return;
    }
    need(&n->qkv, latent->q.rows + a->key_dim);
    need(&n->q_latent, latent->q_a.rows);
    need(&n->queries, (int64_t)a->heads * a->key_dim);
    need(&n->values, block->out.cols);
    need(&n->prepared, sn_linear_scratch(&latent->q, rows));
    if (latent->q_a.rows)
        need(&n->prepared, sn_linear_scratch(&latent->q_a, rows));
    need(&n->kv_prepared, sn_linear_scratch(&latent->kv_a, rows));
    for (int32_t head = 0; head < a->heads; head++) {
        need(&n->head, sn_linear_scratch(&latent->k_b[head], rows));
        need(&n->head, sn_linear_scratch(&latent->v_b[head], rows));
    }
    if (latent->top)
        need_index(n, block, rows);
}

static void need_state(needs *n, const sn_block *block, int64_t rows)
{
    if (block->state == NULL)
        return;
    sn_state_needs state = sn_state_needs_of(block->state, rows);
    need(&n->qkv, state.qkv);
    need(&n->kept, block->attention.heads && !sn_adds_mixed(block));
    need(&n->state.decays, state.decays);
    need(&n->state.low, state.low);
    need(&n->state.carried, state.carried);
    need(&n->state.recur, state.recur);
    for (int which = 0; which < SN_STATE_LINEARS; which++)
        need(&n->state.prepared[which], state.prepared[which]);
}

static void need_mlp(needs *n, const sn_block *block, int32_t threads, int64_t rows)
{
    need(&n->group, rows);
    need(&n->branch, !sn_adds_mixed(block) || !sn_adds_mlp(block));
    need(&n->parallel, block->parallel);
    if (block->mlp.inner) {
        need(&n->gate_up, block->mlp.gate_up.rows);
        need(block->parallel ? &n->mlp_prepared : &n->prepared, sn_linear_scratch(&block->mlp.gate_up, rows));
        need(&n->gated, sn_linear_scratch(&block->mlp.down, rows));
    }
    if (block->experts != NULL) {
        need(&n->experts, sn_experts_scratch(block->experts, threads, rows));
        need(&n->experts_out, block->mlp.inner != 0);
        need(&n->experts_normed, block->experts_norm.kind != SN_NO_NORM);
        need(&n->router_normed, block->router_norm.kind != SN_NO_NORM);
    }
}

static void need_side(needs *n, const sn_block *block, int64_t rows)
{
    if (!block->side)
        return;
    need(&n->branch, 1);
    need(&n->side, block->side);
    need(&n->side_prepared, sn_linear_scratch(&block->side_gate, rows));
    need(&n->side_gated, sn_linear_scratch(&block->side_projection, rows));
}

/* Lays out scratch memory for batches of up to `rows` rows. Returns its size. */
static int64_t lay_out(sn_tile *t, const sn_span *span, int32_t threads, int64_t rows, char *base)
{
    needs n = {0};
    int64_t used = 0, number = (int64_t)sizeof(float), tile = smallest(rows, TILE_ROWS);
    for (int32_t index = 0; index < span->n_blocks; index++) {
        const sn_block *block = &span->blocks[index];
        need_attention(&n, block, tile);
        need_state(&n, block, tile);
        need_mlp(&n, block, threads, smallest(rows, group_rows(block)));
        need_side(&n, block, smallest(rows, group_rows(block)));
    }
    int64_t group = number * n.group * span->hidden;
    t->attend_floats = (n.attend + 15) / 16 * 16;
    t->head_bytes = (n.head + 63) / 64 * 64;
    t->normed = sn_take(base, &used, group);
    t->qkv = sn_take(base, &used, number * tile * n.qkv);
    t->attended = sn_take(base, &used, number * tile * n.attended);
    t->gate_up = sn_take(base, &used, number * n.group * n.gate_up);
    t->prepared = sn_take(base, &used, n.prepared);
    t->gated = sn_take(base, &used, n.gated);
    t->attend_scratch = sn_take(base, &used, number * t->attend_floats * threads);
    t->segment = sn_take(base, &used, (int64_t)sizeof(sn_segment) * tile);
    t->stretch = sn_take(base, &used, (int64_t)sizeof(sn_stretch) * tile);
    t->run = sn_take(base, &used, (int64_t)sizeof(sn_run) * tile);
    t->decays = sn_take(base, &used, number * tile * n.state.decays);
    t->low = sn_take(base, &used, number * tile * n.state.low);
    t->recur_floats = (n.state.recur + 15) / 16 * 16;
    t->recur_scratch = sn_take(base, &used, number * t->recur_floats * threads);
    t->carried = sn_take(base, &used, rows > tile ? number * n.state.carried : 0);
    for (int which = 0; which < SN_STATE_LINEARS; which++)
        t->state_prepared[which] = sn_take(base, &used, n.state.prepared[which]);
    t->branch = sn_take(base, &used, group * n.branch);
    t->kept = sn_take(base, &used, group * n.kept);
    t->mlp_normed = sn_take(base, &used, group * n.parallel);
    t->mlp_prepared = sn_take(base, &used, n.mlp_prepared);
    t->q_latent = sn_take(base, &used, number * tile * n.q_latent);
    t->queries = sn_take(base, &used, number * tile * n.queries);
    t->values = sn_take(base, &used, number * tile * n.values);
    t->kv_prepared = sn_take(base, &used, n.kv_prepared);
    t->head_scratch = sn_take(base, &used, t->head_bytes * threads);
    t->experts_normed = sn_take(base, &used, group * n.experts_normed);
    t->router_normed = sn_take(base, &used, group * n.router_normed);
    t->experts_out = sn_take(base, &used, group * n.experts_out);
    t->experts_scratch = sn_take(base, &used, n.experts);
    t->side = sn_take(base, &used, number * n.group * n.side);
    t->side_prepared = sn_take(base, &used, n.side_prepared);
    t->side_gated = sn_take(base, &used, n.side_gated);
    t->index_bytes = (n.index_scratch + 63) / 64 * 64;
    t->index = sn_take(base, &used, number * tile * n.index);
    for (int i = 0; i < 3; i++)
        t->index_prepared[i] = sn_take(base, &used, n.index_prepared[i]);
    t->index_scratch = sn_take(base, &used, t->index_bytes * threads);
    return used;
}

int64_t sn_span_scratch(const sn_span *span, int32_t threads)
{
    sn_tile t;
    return lay_out(&t, span, threads, EXPERTS_ROWS, NULL);
}

/* The tile's rows, first to first + rows of the batch, as segments. */
static void cut_segments(sn_tile *t, int64_t first, const sn_piece *pieces)
{
    t->segments = t->appended = 0;
    for (int32_t index = 0; index < t->n_pieces; index++) {
        const sn_piece *piece = &pieces[index];
        int64_t row = largest(first, piece->row), end = smallest(piece->row + piece->count, first + t->rows);
        for (int64_t begin = row; row < end;) {
            t->appended |= row > begin; /* segments of one piece see each other's keys */
            int64_t offset = row - piece->row, position = piece->start + offset;
            int64_t count = smallest(SN_PAGE - position % SN_PAGE, end - row);
            if (piece->saved != NULL && offset < piece->again)
                count = smallest(count, piece->again - offset);
            sn_segment *s = &t->segment[t->segments++];
            *s = (sn_segment){*piece, index, (int32_t)offset};
            s->piece.row = (int32_t)(row - first);
            s->piece.start = (int32_t)position;
            s->piece.count = (int32_t)count;
            row += count;
        }
    }
}

static void read_inputs(void *arg, int32_t first, int32_t end, int32_t thread)
{
    (void)thread;
    sn_mlp_inputs(arg, first, end);
}

/* What attention and the state's part have made, with their factors, as one. */
static void join(const sn_block *block, float *branch, const float *kept, int32_t hidden)
{
    int both = block->attention.heads && block->state != NULL;
    float factor = block->attention.heads ? block->attention_factor : block->state_factor;
    for (int32_t i = 0; (both || factor != 1.0f) && i < hidden; i++)
        branch[i] = both ? factor * branch[i] + block->state_factor * kept[i] : factor * branch[i];
}

/* Parts: rows, to which what waits in branch is added; then what the MLP reads. */
static void between(void *arg, int32_t first, int32_t end, int32_t thread)
{
    sn_tile *t = arg;
    const sn_block *block = t->block;
    int32_t hidden = t->hidden;
    (void)thread;
    for (int64_t row = first; row < end && !sn_adds_mixed(block); row++) {
        float *x = t->x + row * hidden, *branch = t->branch + row * hidden;
        join(block, branch, t->kept + row * hidden, hidden);
        sn_norm_row(&block->attention_out_norm, branch, branch, hidden, 0);
        for (int32_t i = 0; i < hidden; i++)
            x[i] += block->residual_multiplier * branch[i];
    }
    if (!block->parallel && sn_transforms(block))
        sn_mlp_inputs(t, first, end);
}

/* Rows first to first + rows of the batch. */
static void block_forward(const sn_tile *batch, sn_pool *pool, int64_t first, int64_t rows, const sn_piece *pieces)
{
    sn_tile group = *batch;
    const sn_block *block = group.block;
    group.x += first * group.hidden;
    group.beside += first * group.beside_ld;
    group.rows = rows;
    if (block->parallel)
        sn_pool_run(pool, read_inputs, &group, (int32_t)rows, 1);
    else
        group.mlp_normed = group.normed, group.mlp_prepared = group.prepared;
    for (int64_t done = 0; done < rows && sn_mixes(block); done += TILE_ROWS) {
        sn_tile t = group;
        t.rows = smallest(rows - done, TILE_ROWS);
        t.x += done * t.hidden;
        t.branch += done * t.hidden;
        t.kept += done * t.hidden;
        t.at = first + done;
        cut_segments(&t, t.at, pieces);
        if (block->state != NULL)
            sn_block_state(&t, pool, pieces);
        if (block->latent != NULL)
            sn_latent_attention(&t, pool);
        else if (block->attention.heads)
            sn_block_attention(&t, pool);
    }
    if (!sn_adds_mixed(block) || (!block->parallel && sn_transforms(block)))
        sn_pool_run(pool, between, &group, (int32_t)rows, 1);
    sn_block_mlp(&group, pool);
    if (block->side)
        sn_block_side(&group, pool);
}

void sn_span_forward(const sn_span *span, sn_pool *pool, int32_t first_block, int32_t end_block, float *x,
                     int64_t rows, const float *beside, int64_t beside_ld, const sn_piece *pieces,
                     const sn_rotation *rotations, int32_t n_pieces, const sn_kv *kv, const sn_states *states,
                     const sn_choice *choice, void *scratch)
{
    sn_tile t = {.kv = kv, .states = states, .rotations = rotations, .n_pieces = n_pieces, .hidden = span->hidden, .x = x};
    t.beside = beside, t.beside_ld = beside_ld, t.choice = choice;
    lay_out(&t, span, sn_pool_threads(pool), smallest(rows, EXPERTS_ROWS), scratch);
    for (int32_t number = first_block; number < end_block; number++) {
        t.number = number;
        t.block = &span->blocks[number - span->first_block];
        int64_t step = group_rows(t.block);
        for (int64_t first = 0; first < rows; first += step)
            block_forward(&t, pool, first, smallest(rows - first, step), pieces);
        t.beside += t.block->side;
    }
    sn_pool_rest(pool);
}
