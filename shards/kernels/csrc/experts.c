/* Rows that share an expert go through it together: a *group*. All groups, the shared expert's among them, are one
   piece of work for the threads: first the tiles of gate and up, then those of down. Each of a row's outputs waits in
   its own place, so that they are added in the order of the experts, however groups were computed. */
#include "experts.h"

#include <stddef.h>
#include <string.h>

#include "product.h"

enum { SUM_COLUMNS = 512 }; /* of a row: what one part of the sum is */

/* An expert and its rows. `first` of its parts in the present job. */
typedef struct {
    const sn_mlp *mlp;
    const float *x; /* (rows, cols) */
    int64_t rows, cols;
    void *prepared, *gated; /* inputs of the products */
    float *inner;           /* (rows, gate and up) */
    float *out;             /* (rows, cols) */
    int32_t first;
} group;

typedef struct {
    const sn_experts *e;
    const float *x, *router_x;
    float *out;
    int64_t rows;
    int64_t input_bytes, gated_bytes; /* of a row that an expert's products read */
    int32_t shared_width;             /* of inner */
    void *prepared;                   /* router_x, and its gate's x behind it */
    float *scores;                    /* (rows, count) */
    float *gates;                     /* (rows) of the shared expert */
    int32_t *chosen;                  /* (rows, used) */
    float *weights;                   /* (rows, used) */
    int32_t *pairs;                   /* (rows, used): where a row's output of an expert lies; sorted by expert */
    int32_t *starts;                  /* (count + 1): the first pair of each expert */
    int32_t *active;                  /* the experts that have rows */
    int32_t *places;                  /* of active ones: those that are computed now */
    float *expected_weights;          /* of the next block, with `expected` in the place of active */
    int32_t *expected;
    const float *read;                /* (rows, width): what experts do, x or its latent */
    float *summed;                    /* (rows, width): out, or what latent_out reads */
    float *latent;                    /* (rows, width) of memory for read and then for summed */
    void *latent_prepared;
    float *gathered;                  /* (pairs, width) */
    char *inputs, *gated;             /* (pairs): prepared */
    float *inner;                     /* (pairs, gate and up) */
    float *outs;                      /* (pairs, width) */
    void *shared_input, *shared_gated;
    float *shared_inner, *shared_out;
    group *groups;
    int32_t n_groups;
} work;

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* Bytes of one row that `linear` reads; a multiple of what the rows of a group are aligned to. */
static int64_t row_bytes(const sn_linear *linear) { return (sn_linear_scratch(linear, 1) + 63) / 64 * 64; }

static int32_t width_of(const sn_mlp *mlp) { return mlp->gated ? 2 * mlp->inner : mlp->inner; }

static int64_t lay_out(work *w, const sn_experts *e, int64_t rows, char *base)
{
    int64_t used = 0, pairs = rows * e->used, hidden = e->hidden, width = e->width, four = (int64_t)sizeof(float);
    w->input_bytes = w->gated_bytes = 0;
    for (int32_t i = 0; i < e->count; i++) {
        w->input_bytes = larger(w->input_bytes, row_bytes(&e->experts[i].gate_up));
        w->gated_bytes = larger(w->gated_bytes, row_bytes(&e->experts[i].down));
    }
    int64_t router = sn_linear_scratch(&e->router.linear, rows);
    if (e->next)
        router = larger(router, sn_linear_scratch(&e->next->router.linear, rows));
    if (e->shared_gate)
        router = larger(router, sn_linear_scratch(e->shared_gate, rows));
    w->prepared = sn_take(base, &used, router);
    w->scores = sn_take(base, &used, four * rows * larger(e->count, e->next ? e->next->count : 0));
    w->gates = sn_take(base, &used, four * rows);
    w->chosen = sn_take(base, &used, four * larger(pairs, e->next ? rows * e->next->used : 0));
    w->weights = sn_take(base, &used, four * pairs);
    w->pairs = sn_take(base, &used, four * pairs);
    w->starts = sn_take(base, &used, four * (e->count + 1));
    w->active = sn_take(base, &used, four * e->count);
    w->places = sn_take(base, &used, four * e->count);
    w->gathered = sn_take(base, &used, four * pairs * width);
    w->inputs = sn_take(base, &used, w->input_bytes * pairs);
    w->gated = sn_take(base, &used, w->gated_bytes * pairs);
    w->inner = sn_take(base, &used, four * pairs * width_of(e->experts));
    w->outs = sn_take(base, &used, four * pairs * width);
    w->groups = sn_take(base, &used, (int64_t)sizeof(group) * (e->count + 1));
    if (e->latent_in) {
        w->latent = sn_take(base, &used, four * rows * width);
        w->latent_prepared = sn_take(base, &used, larger(sn_linear_scratch(e->latent_in, rows),
                                                         sn_linear_scratch(e->latent_out, rows)));
    }
    if (e->next) {
        w->expected_weights = sn_take(base, &used, four * rows * e->next->used);
        w->expected = sn_take(base, &used, four * e->next->count);
    }
    if (e->shared) {
        w->shared_input = sn_take(base, &used, sn_linear_scratch(&e->shared->gate_up, rows));
        w->shared_gated = sn_take(base, &used, sn_linear_scratch(&e->shared->down, rows));
        w->shared_inner = sn_take(base, &used, four * rows * width_of(e->shared));
        w->shared_out = sn_take(base, &used, four * rows * hidden);
    }
    return used;
}

int64_t sn_experts_scratch(const sn_experts *e, int32_t threads, int64_t rows)
{
    work w;
    (void)threads;
    return lay_out(&w, e, rows, NULL);
}

typedef struct {
    const sn_experts *e;
    const work *w;
} routing;

static void route_rows(void *arg, int32_t first, int32_t end, int32_t thread)
{
    const routing *r = arg;
    const sn_experts *e = r->e;
    (void)thread;
    for (int64_t row = first; row < end; row++)
        sn_route(&e->router, e->count, e->used, r->w->scores + row * e->count, r->w->chosen + row * e->used,
                 r->w->weights + row * e->used);
}

/* What the router of `e` says of the rows of `w`. */
static void route(sn_pool *pool, const sn_experts *e, const work *w)
{
    routing r = {e, w};
    sn_linear_prepare(&e->router.linear, w->router_x, e->hidden, w->rows, w->prepared);
    sn_multiply(pool, &e->router.linear, w->router_x, e->hidden, w->rows, w->scores, e->count, 0, w->prepared);
    sn_pool_run(pool, route_rows, &r, (int32_t)w->rows, 1);
}

/* Sorts the rows' choices by expert: starts, pairs and active. Returns how many are active. */
static int32_t sort_pairs(work *w)
{
    const sn_experts *e = w->e;
    int64_t pairs = w->rows * e->used;
    int32_t active = 0, next = 0;
    memset(w->starts, 0, sizeof *w->starts * (size_t)(e->count + 1));
    for (int64_t i = 0; i < pairs; i++)
        w->starts[w->chosen[i]]++;
    for (int32_t expert = 0; expert < e->count; expert++) {
        int32_t rows = w->starts[expert];
        w->starts[expert] = next;
        next += rows;
        if (rows)
            w->active[active++] = expert;
    }
    for (int64_t i = 0; i < pairs; i++) /* starts become ends */
        w->pairs[i] = w->starts[w->chosen[i]]++;
    for (int32_t expert = e->count; expert > 0; expert--)
        w->starts[expert] = w->starts[expert - 1];
    w->starts[0] = 0;
    return active;
}

/* Parts: rows. Each is written to where its experts read it. */
static void gather(void *arg, int32_t first, int32_t end, int32_t thread)
{
    const work *w = arg;
    const sn_experts *e = w->e;
    (void)thread;
    for (int64_t row = first; row < end; row++)
        for (int32_t i = 0; i < e->used; i++) {
            float *to = w->gathered + (int64_t)w->pairs[row * e->used + i] * e->width;
            memcpy(to, w->read + row * e->width, sizeof(float) * (size_t)e->width);
            if (!e->router.scale_input)
                continue;
            float *weight = &w->weights[row * e->used + i];
            for (int32_t col = 0; col < e->width; col++)
                to[col] *= *weight;
        }
}

static void add_group(work *w, group g) { w->groups[w->n_groups++] = g; }

static void add_expert(work *w, int32_t expert)
{
    const sn_mlp *mlp = &w->e->experts[expert];
    int64_t first = w->starts[expert];
    add_group(w, (group){.mlp = mlp,
                         .x = w->gathered + first * w->e->width,
                         .rows = w->starts[expert + 1] - first,
                         .cols = w->e->width,
                         .prepared = w->inputs + first * w->input_bytes,
                         .gated = w->gated + first * w->gated_bytes,
                         .inner = w->inner + first * width_of(mlp),
                         .out = w->outs + first * w->e->width});
}

static void add_shared(work *w)
{
    add_group(w, (group){.mlp = w->e->shared,
                         .x = w->x,
                         .rows = w->rows,
                         .cols = w->e->hidden,
                         .prepared = w->shared_input,
                         .gated = w->shared_gated,
                         .inner = w->shared_inner,
                         .out = w->shared_out});
}

/* The group that part number `part` belongs to. */
static const group *group_of(const work *w, int32_t part)
{
    int32_t low = 0, high = w->n_groups;
    while (high - low > 1) {
        int32_t middle = low + (high - low) / 2;
        if (w->groups[middle].first <= part)
            low = middle;
        else
            high = middle;
    }
    return &w->groups[low];
}

/* Parts: groups. */
static void prepare(void *arg, int32_t first, int32_t end, int32_t thread)
{
    const work *w = arg;
    (void)thread;
    for (const group *g = w->groups + first; g < w->groups + end; g++)
        sn_linear_prepare(&g->mlp->gate_up, g->x, g->cols, g->rows, g->prepared);
}

/* Tiles of gate that lie like the same tiles of up; else one part does all. */
static int32_t gate_parts(const group *g) { return g->mlp->inner % SN_TILE ? 1 : g->mlp->inner / SN_TILE; }

static int32_t down_parts(const group *g) { return sn_linear_parts(&g->mlp->down); }

static void gate_tiles(const group *g, int32_t first, int32_t end)
{
    const sn_mlp *mlp = g->mlp;
    int64_t inner = mlp->inner, width = width_of(mlp), first_col = (int64_t)first * SN_TILE;
    int64_t columns = (int64_t)(end - first) * SN_TILE;
    if (inner % SN_TILE) {
        first_col = 0, columns = inner;
        sn_linear_run(&mlp->gate_up, g->x, g->cols, g->rows, g->inner, width, 0, g->prepared, 0,
                      sn_linear_parts(&mlp->gate_up));
    } else {
        for (int64_t part = 0; part * inner < width; part++) {
            int32_t tile = (int32_t)(part * inner / SN_TILE);
            sn_linear_run(&mlp->gate_up, g->x, g->cols, g->rows, g->inner, width, 0, g->prepared, tile + first, tile + end);
        }
    }
    for (int64_t row = 0; row < g->rows; row++) {
        float *at = g->inner + row * width + first_col;
        sn_activate(&mlp->activation, at, mlp->gated ? at + inner : NULL, (int32_t)columns);
    }
    sn_linear_prepare_part(&mlp->down, g->inner, width, g->rows, g->gated, 0, g->rows, first_col, first_col + columns);
}

static void down_tiles(const group *g, int32_t first, int32_t end)
{
    sn_linear_run(&g->mlp->down, g->inner, width_of(g->mlp), g->rows, g->out, g->cols, 0, g->gated, first, end);
}

typedef struct {
    work *w;
    void (*tiles)(const group *, int32_t, int32_t);
    int32_t (*parts)(const group *);
} stage;

static void stage_parts(void *arg, int32_t first, int32_t end, int32_t thread)
{
    const stage *s = arg;
    (void)thread;
    while (first < end) {
        const group *g = group_of(s->w, first);
        int32_t of_group = g->first + s->parts(g), until = end < of_group ? end : of_group;
        s->tiles(g, first - g->first, until - g->first);
        first = until;
    }
}

static void run_stage(sn_pool *pool, stage s)
{
    int32_t parts = 0;
    for (int32_t i = 0; i < s.w->n_groups; i++) {
        s.w->groups[i].first = parts;
        parts += s.parts(&s.w->groups[i]);
    }
    sn_pool_run(pool, stage_parts, &s, parts, 1);
}

static void run_groups(sn_pool *pool, work *w)
{
    sn_pool_run(pool, prepare, w, w->n_groups, 1);
    run_stage(pool, (stage){w, gate_tiles, gate_parts});
    run_stage(pool, (stage){w, down_tiles, down_parts});
    w->n_groups = 0;
}

static int32_t column_ranges(int32_t cols) { return (cols + SUM_COLUMNS - 1) / SUM_COLUMNS; }

/* to += weight * from; to = where it is the first. */
static void add(float *restrict to, const float *restrict from, float weight, int32_t n, int first)
{
    for (int32_t i = 0; i < n; i++)
        to[i] = first ? weight * from[i] : to[i] + weight * from[i];
}

/* Parts: column ranges of each row. */
static void sum(void *arg, int32_t first, int32_t end, int32_t thread)
{
    const work *w = arg;
    const sn_experts *e = w->e;
    int32_t width = e->width, ranges = column_ranges(width);
    (void)thread;
    for (int32_t part = first; part < end; part++) {
        int64_t row = part / ranges, col = (int64_t)(part % ranges) * SUM_COLUMNS;
        int32_t n = width - col < SUM_COLUMNS ? (int32_t)(width - col) : SUM_COLUMNS;
        float *to = w->summed + row * width + col;
        for (int32_t i = 0; i < e->used; i++)
            add(to, w->outs + (int64_t)w->pairs[row * e->used + i] * width + col,
                e->router.scale_input ? 1.0f : w->weights[row * e->used + i], n, i == 0);
        if (e->shared && !e->latent_in)
            add(to, w->shared_out + row * width + col, e->shared_gate ? w->gates[row] : 1.0f, n, 0);
    }
}

/* Parts: rows. */
static void add_shared_rows(void *arg, int32_t first, int32_t end, int32_t thread)
{
    const work *w = arg;
    int64_t hidden = w->e->hidden;
    (void)thread;
    for (int64_t row = first; row < end; row++)
        add(w->out + row * hidden, w->shared_out + row * hidden, w->e->shared_gate ? w->gates[row] : 1.0f,
            (int32_t)hidden, 0);
}

/* y (rows, cols) becomes what `linear` makes of x. */
static void project(sn_pool *pool, const work *w, const sn_linear *linear, const float *x, int32_t ldx, float *y,
                    int32_t cols)
{
    sn_linear_prepare(linear, x, ldx, w->rows, w->latent_prepared);
    sn_multiply(pool, linear, x, ldx, w->rows, y, cols, 0, w->latent_prepared);
}

static void gate_shared(const work *w)
{
    sn_linear_prepare(w->e->shared_gate, w->x, w->e->hidden, w->rows, w->prepared);
    sn_linear_run(w->e->shared_gate, w->x, w->e->hidden, w->rows, w->gates, 1, 0, w->prepared, 0, 1);
    for (int64_t row = 0; row < w->rows; row++)
        w->gates[row] = sn_sigmoid(w->gates[row]);
}

/* Tells the store what the next block's router makes of these rows. */
static void expect_next(sn_pool *pool, const work *w)
{
    const sn_experts *next = w->e->next;
    uint8_t is_expected[SN_MOST_EXPERTS] = {0};
    int32_t n = 0;
    work ahead = *w;
    ahead.weights = w->expected_weights; /* this block's are still needed, unlike its scores and choices */
    route(pool, next, &ahead);
    for (int64_t i = 0; i < w->rows * next->used; i++)
        is_expected[w->chosen[i]] = 1;
    for (int32_t expert = 0; expert < next->count; expert++)
        if (is_expected[expert])
            w->expected[n++] = expert;
    sn_store_expect(next->store, next->number, w->expected, n);
}

void sn_experts_forward(sn_pool *pool, const sn_experts *e, const float *x, const float *router_x, int64_t rows,
                        float *out, void *scratch)
{
    work w = {.e = e, .x = x, .router_x = router_x, .out = out, .read = x, .summed = out, .rows = rows};
    lay_out(&w, e, rows, scratch);
    route(pool, e, &w);
    int32_t active = sort_pairs(&w);
    if (e->latent_in) {
        project(pool, &w, e->latent_in, x, e->hidden, w.latent, e->width);
        w.read = w.summed = w.latent;
    }
    sn_pool_run(pool, gather, &w, (int32_t)rows, 1);
    if (e->shared)
        add_shared(&w);
    if (e->shared_gate)
        gate_shared(&w);
    if (!e->store) {
        for (int32_t i = 0; i < active; i++)
            add_expert(&w, w.active[i]);
        run_groups(pool, &w);
    } else {
        sn_store_want(e->store, e->number, w.active, active);
        if (e->next)
            expect_next(pool, &w);
        for (int32_t n; (n = sn_store_take(e->store, w.places)) > 0;) {
            for (int32_t i = 0; i < n; i++)
                add_expert(&w, w.active[w.places[i]]);
            run_groups(pool, &w);
        }
    }
    sn_pool_run(pool, sum, &w, (int32_t)rows * column_ranges(e->width), 4);
    if (!e->latent_in)
        return;
    project(pool, &w, e->latent_out, w.summed, e->width, out, e->hidden);
    if (e->shared)
        sn_pool_run(pool, add_shared_rows, &w, (int32_t)rows, 1);
}
