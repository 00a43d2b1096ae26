/* The part of a block that keeps a state: beside attention, or in its place. Whoever has computed some outputs of the
   first products goes on with them: convolutions and decays are of each channel by itself. */
#include <stddef.h>

#include "product.h"
#include "tile.h"

enum { TOGETHER = 8 }; /* tiles that are multiplied before what comes after them: 64 KB of outputs of 64 rows */

/* Floats of a row of t->qkv: q, k, v and the gate's z; or b, c and v. An odd number of cache lines, so that the same
   channels of many rows are not all in one set of the cache. */
static int64_t row_width(const sn_state *s)
{
    int64_t values = s->rule == SN_SHORT_CONV ? 3 * (int64_t)s->channels : s->channels + sn_inner(s);
    return 16 * ((values + 15) / 16 | 1);
}

static int64_t decays_width(const sn_state *s) { return s->heads ? sn_decay_size(s) + s->heads : 0; }

static int64_t low_width(const sn_state *s) { return (int64_t)s->linears[SN_GATE_A].rows + s->linears[SN_DECAY_A].rows; }

sn_state_needs sn_state_needs_of(const sn_state *s, int64_t rows)
{
    sn_state_needs n = {row_width(s), decays_width(s), low_width(s), 2 * sn_state_floats(s), sn_recur_scratch(s), {0}};
    for (int which = 0; which < SN_STATE_LINEARS; which++)
        n.prepared[which] = sn_linear_scratch(&s->linears[which], rows);
    return n;
}

static int32_t slot_of(const sn_tile *t, const sn_piece *piece, int64_t page)
{
    return piece->states[(int64_t)(t->number - piece->first_block) * piece->pages + page];
}

static int32_t saved_slot_of(const sn_tile *t, const sn_piece *piece)
{
    return piece->saved[t->number - piece->first_block];
}

int32_t sn_states_fit(const sn_span *span, int32_t first_block, int32_t end_block, const sn_piece *pieces,
                      int32_t n_pieces, int64_t n_slots)
{
    for (int32_t number = first_block; number < end_block; number++) {
        if (span->blocks[number - span->first_block].state == NULL)
            continue;
        sn_tile t = {.number = number};
        for (int32_t index = 0; index < n_pieces; index++) {
            const sn_piece *piece = &pieces[index];
            int64_t end = (int64_t)piece->start + piece->count, page = piece->start ? (piece->start - 1) / SN_PAGE : 0;
            int32_t saved = piece->saved == NULL ? -1 : saved_slot_of(&t, piece);
            int begins_saved = piece->saved != NULL && piece->again == 0;
            if (piece->states == NULL || (piece->saved != NULL && (saved < 0 || saved >= n_slots)))
                return index;
            if (piece->start && !begins_saved && slot_of(&t, piece, page) < 0)
                return index;
            for (; page <= (end - 1) / SN_PAGE; page++)
                if (slot_of(&t, piece, page) < -1 || slot_of(&t, piece, page) >= n_slots)
                    return index;
        }
    }
    return -1;
}

static float *of_slot(const sn_tile *t, int32_t slot)
{
    return slot < 0 ? NULL : t->states->data + slot * t->states->slot_floats;
}

/* Where a page keeps the state after its last row; NULL: it does not. */
static float *at_slot(const sn_tile *t, const sn_piece *piece, int64_t page)
{
    return of_slot(t, slot_of(t, piece, page));
}

/* Where the piece says that the state before its row `offset` is; NULL: nowhere. */
static float *at_saved(const sn_tile *t, const sn_piece *piece, int64_t offset)
{
    return piece->saved == NULL || offset != piece->again ? NULL : of_slot(t, saved_slot_of(t, piece));
}

static float *carried(const sn_tile *t, int64_t tile) { return t->carried + tile % 2 * sn_state_floats(t->block->state); }

/* What goes on after the tile, in the middle of a page or where none keeps it, waits in `carried`: that of the one session
   which ends the tile, while another's may still be read from that of the tile before. */
static void find_states(sn_tile *t, const sn_piece *pieces)
{
    t->n_runs = 0;
    for (int32_t index = 0; index < t->segments; index++) {
        const sn_segment *segment = &t->segment[index];
        const sn_piece *piece = &pieces[segment->index], *part = &segment->piece;
        int64_t start = part->start, end = start + part->count;
        int begins = index == 0 || t->segment[index - 1].index != segment->index;
        if (begins) {
            const float *from = start ? at_saved(t, piece, segment->offset) : NULL;
            if (start && from == NULL && (segment->offset == 0 || start % SN_PAGE == 0))
                from = at_slot(t, piece, (start - 1) / SN_PAGE);
            if (segment->offset && from == NULL)
                from = carried(t, t->at / SN_BLOCK_ROWS - 1);
            t->run[t->n_runs++] = (sn_run){from, index, index};
        }
        t->run[t->n_runs - 1].end = index + 1;
        int is_last = end == (int64_t)piece->start + piece->count;
        float *keeps = end % SN_PAGE == 0 || is_last ? at_slot(t, piece, (end - 1) / SN_PAGE)
                                                     : at_saved(t, piece, end - piece->start);
        if (keeps == NULL && !is_last && part->row + part->count == t->rows)
            keeps = carried(t, t->at / SN_BLOCK_ROWS);
        t->stretch[index] = (sn_stretch){part->row, part->count, keeps};
        if (!begins && t->stretch[index - 1].keeps == keeps)
            t->stretch[index - 1].keeps = NULL; /* which these rows would write over */
    }
}

static void norm_input(void *arg, int32_t first, int32_t end, int32_t thread)
{
    sn_tile *t = arg;
    (void)thread;
    for (int64_t row = first; row < end; row++)
        sn_norm_row(&t->block->norm, t->x + row * t->hidden, t->normed + row * t->hidden, t->hidden, 0);
    for (int which = 0; which < SN_GATE_B; which++)
        sn_linear_prepare_part(&t->block->state->linears[which], t->normed, t->hidden, t->rows, t->state_prepared[which],
                               first, end, 0, t->hidden);
}

/* Where a linear's inputs and outputs are. */
typedef struct {
    const float *x;
    int64_t ldx;
    float *y;
    int64_t ldy;
} place;

static place place_of(const sn_tile *t, int which)
{
    const sn_state *s = t->block->state;
    int64_t low = low_width(s), decays = decays_width(s), behind = s->linears[SN_GATE_A].rows;
    switch (which) {
    case SN_IN: return (place){t->normed, t->hidden, t->qkv, row_width(s)};
    case SN_DECAY: return (place){t->normed, t->hidden, t->decays + (s->rule == SN_PLAIN ? s->heads : 0), decays};
    case SN_BETA: return (place){t->normed, t->hidden, t->decays + sn_decay_size(s), decays};
    case SN_GATE_A: return (place){t->normed, t->hidden, t->low, low};
    case SN_DECAY_A: return (place){t->normed, t->hidden, t->low + behind, low};
    case SN_GATE_B: return (place){t->low, low, t->qkv + s->channels, row_width(s)};
    default: return (place){t->low + behind, low, t->decays, decays};
    }
}

/* What comes after outputs first to end of a linear. */
static void go_on(const sn_tile *t, int which, place at, int64_t first, int64_t end)
{
    const sn_state *s = t->block->state;
    if (which == SN_IN) {
        for (int64_t row = 0; row < t->rows && s->factors; row++)
            for (int64_t i = first; i < end; i++)
                at.y[row * at.ldy + i] *= s->factors[i];
        sn_convolve(s, t->run, t->n_runs, t->stretch, at.y, at.ldy, first, end < s->channels ? end : s->channels, 1);
    } else if (which == SN_GATE_A || which == SN_DECAY_A) {
        int next = which == SN_GATE_A ? SN_GATE_B : SN_DECAY_B;
        sn_linear_prepare_part(&s->linears[next], at.y, at.ldy, t->rows, t->state_prepared[next], 0, t->rows, first, end);
    } else if (which == SN_GATE_B) {
        for (int64_t row = 0; row < t->rows && s->factors; row++)
            for (int64_t i = first; i < end; i++)
                at.y[row * at.ldy + i] *= s->factors[s->channels + i];
    } else {
        int64_t behind = at.y - t->decays;
        for (int64_t row = 0; row < t->rows; row++)
            sn_decays(s, t->decays + row * at.ldy, behind + first, behind + end);
    }
}

/* Parts: tiles of the linears `first` to `end`. */
typedef struct {
    const sn_tile *t;
    int first, end;
} products;

static void multiply(void *arg, int32_t first, int32_t end, int32_t thread)
{
    const products *p = arg;
    const sn_tile *t = p->t;
    (void)thread;
    for (int which = p->first; which < p->end; which++) {
        const sn_linear *linear = &t->block->state->linears[which];
        int32_t tiles = sn_linear_parts(linear), until = end < tiles ? end : tiles;
        place at = place_of(t, which);
        for (int32_t from = first > 0 ? first : 0, to; from < until; from = to) {
            to = until - from < TOGETHER ? until : from + TOGETHER;
            sn_linear_run(linear, at.x, at.ldx, t->rows, at.y, at.ldy, 0, t->state_prepared[which], from, to);
            go_on(t, which, at, sn_linear_first_row(linear, from), sn_linear_first_row(linear, to));
        }
        first -= tiles;
        end -= tiles;
    }
}

static void multiply_all(sn_tile *t, sn_pool *pool, int first, int end)
{
    products p = {t, first, end};
    int32_t tiles = 0;
    for (int which = first; which < end; which++)
        tiles += sn_linear_parts(&t->block->state->linears[which]);
    sn_pool_run(pool, multiply, &p, tiles, 1);
}

/* Whether a head's output is finished with what the head has; and the next product reads whole groups of it. */
static int heads_finish(const sn_state *s)
{
    return (s->norm.kind == SN_NO_NORM || s->norm_groups == s->heads) && s->value_dim % SN_GROUP == 0;
}

/* Parts: heads of each run. */
static void recur(void *arg, int32_t first, int32_t end, int32_t thread)
{
    sn_tile *t = arg;
    const sn_state *s = t->block->state;
    int64_t width = row_width(s), dim = s->value_dim;
    float *scratch = t->recur_scratch + thread * t->recur_floats, *o = t->qkv + 2 * sn_key_size(s);
    for (int32_t index = first; index < end; index++) {
        const sn_run *run = &t->run[index / s->heads];
        int64_t head = index % s->heads, row = t->stretch[run->first].row;
        int64_t until = t->stretch[run->end - 1].row + t->stretch[run->end - 1].count;
        sn_recur(s, run, t->stretch, (int32_t)head, t->qkv, width, t->decays, decays_width(s), scratch);
        if (!heads_finish(s))
            continue;
        for (int64_t i = row; i < until; i++)
            sn_gate(s, o + i * width + head * dim, t->qkv + i * width + s->channels + head * dim, head * dim, (int32_t)dim);
        sn_linear_prepare_part(&s->linears[SN_OUT], o, width, t->rows, t->state_prepared[SN_OUT], row, until, head * dim,
                               (head + 1) * dim);
    }
}

/* Parts: rows. */
static void finish(void *arg, int32_t first, int32_t end, int32_t thread)
{
    sn_tile *t = arg;
    const sn_state *s = t->block->state;
    int64_t width = row_width(s), inner = sn_inner(s), size = inner / s->norm_groups;
    float *o = t->qkv + 2 * sn_key_size(s);
    (void)thread;
    for (int64_t row = first; row < end; row++)
        for (int64_t at = 0; at < inner; at += size)
            sn_gate(s, o + row * width + at, t->qkv + row * width + s->channels + at, at, (int32_t)size);
    sn_linear_prepare_part(&s->linears[SN_OUT], o, width, t->rows, t->state_prepared[SN_OUT], first, end, 0, inner);
}

/* Parts: tiles of b with the same tiles of c and v; all of them where they do not lie alike. */
static void short_conv(void *arg, int32_t first, int32_t end, int32_t thread)
{
    sn_tile *t = arg;
    const sn_state *s = t->block->state;
    const sn_linear *in = &s->linears[SN_IN];
    place at = place_of(t, SN_IN);
    int64_t n = s->channels, first_col = (int64_t)first * SN_TILE, end_col = (int64_t)end * SN_TILE;
    (void)thread;
    if (n % SN_TILE) {
        first_col = 0, end_col = n;
        sn_linear_run(in, at.x, at.ldx, t->rows, at.y, at.ldy, 0, t->state_prepared[SN_IN], 0, sn_linear_parts(in));
    } else {
        for (int32_t part = 0, tiles = (int32_t)(n / SN_TILE); part < 3; part++)
            sn_linear_run(in, at.x, at.ldx, t->rows, at.y, at.ldy, 0, t->state_prepared[SN_IN], part * tiles + first,
                          part * tiles + end);
    }
    for (int64_t row = 0; row < t->rows; row++) {
        float *b = at.y + row * at.ldy;
        for (int64_t i = first_col; i < end_col; i++)
            b[i] *= b[2 * n + i];
    }
    sn_convolve(s, t->run, t->n_runs, t->stretch, at.y, at.ldy, first_col, end_col, 0);
    for (int64_t row = 0; row < t->rows; row++) {
        float *b = at.y + row * at.ldy;
        for (int64_t i = first_col; i < end_col; i++)
            b[i] *= b[n + i];
    }
    sn_linear_prepare_part(&s->linears[SN_OUT], at.y, at.ldy, t->rows, t->state_prepared[SN_OUT], 0, t->rows, first_col,
                           end_col);
}

void sn_block_state(sn_tile *t, sn_pool *pool, const sn_piece *pieces)
{
    const sn_state *s = t->block->state;
    const float *made = t->qkv;
    int32_t rows = (int32_t)t->rows;
    find_states(t, pieces);
    sn_pool_run(pool, norm_input, t, rows, 1);
    if (s->rule == SN_SHORT_CONV) {
        sn_pool_run(pool, short_conv, t, s->channels % SN_TILE ? 1 : s->channels / SN_TILE, 1);
    } else {
        made += 2 * sn_key_size(s);
        multiply_all(t, pool, SN_IN, SN_GATE_B);
        multiply_all(t, pool, SN_GATE_B, SN_OUT);
        sn_pool_run(pool, recur, t, t->n_runs * s->heads, 1);
        if (!heads_finish(s))
            sn_pool_run(pool, finish, t, rows, 1);
    }
    sn_mixed_out(t, pool, &s->linears[SN_OUT], made, row_width(s), t->state_prepared[SN_OUT],
                 t->block->attention.heads ? t->kept : t->branch);
}
