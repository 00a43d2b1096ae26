/* A block at a time, and within it TILE_ROWS rows at a time, so that what passes from step to step stays in the
   cache: rows only look at rows before them, whose keys and values are in the pages by then. Threads share a
   linear by its output tiles, norms by rows, attention by sequences and, of few, by KV heads. Threads wait for each
   other five times a block and for the norms: whoever has computed some outputs goes on with them as far as nobody
   else's are needed. Every row's result is the same bits however the rows are batched, cut and shared. */
#include "block.h"

#include <stddef.h>

#include "activation.h"
#include "product.h"

enum {
    TILE_ROWS = SN_BLOCK_ROWS, /* 0.8 MB of gate and up at 1536 intermediate */
};

/* Rows of one piece within one page: what one thread appends, so that no two write to the same page. */
typedef struct {
    sn_piece piece; /* clipped */
    const float *cos, *sin;
} segment;

typedef struct {
    const sn_span *span;
    const sn_kv *kv;
    const sn_block *block;
    int32_t number;   /* of the block, absolute */
    int32_t segments; /* in this tile */
    int32_t appended; /* before attention: segments see each other's keys. Else each appends its own */
    int32_t splits;   /* ranges of KV heads that share a segment's attention */
    int64_t rows;     /* in this tile */
    float *x;         /* the tile's first row */
    float *normed, *qkv, *attended, *gate_up, *attend_scratch;
    int64_t attend_floats; /* of attend_scratch, each thread */
    void *prepared, *gated; /* inputs of the next linear, and of down */
    segment *segment;
} tile;

static int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }

static int32_t qkv_width(const sn_span *span)
{
    return (span->attention.heads + 2 * span->attention.kv_heads) * span->attention.key_dim;
}

/* Lays out scratch memory for tiles of up to `rows` rows. Returns its size. */
static int64_t lay_out(tile *t, const sn_span *span, int32_t threads, int64_t rows, char *base)
{
    int64_t used = 0, linear = 0, down = 0, row = (int64_t)sizeof(float) * rows;
    for (int32_t index = 0; index < span->n_blocks; index++) {
        const sn_block *block = &span->blocks[index];
        linear = largest(linear, sn_linear_scratch(&block->qkv, rows));
        linear = largest(linear, sn_linear_scratch(&block->out, rows));
        linear = largest(linear, sn_linear_scratch(&block->gate_up, rows));
        down = largest(down, sn_linear_scratch(&block->down, rows));
    }
    t->attend_floats = (sn_attend_scratch(&span->attention) + 15) / 16 * 16;
    t->normed = sn_take(base, &used, row * span->hidden);
    t->qkv = sn_take(base, &used, row * qkv_width(span));
    t->attended = sn_take(base, &used, row * span->attention.heads * span->attention.key_dim);
    t->gate_up = sn_take(base, &used, row * 2 * span->intermediate);
    t->prepared = sn_take(base, &used, linear);
    t->gated = sn_take(base, &used, down);
    t->attend_scratch = sn_take(base, &used, (int64_t)sizeof(float) * t->attend_floats * threads);
    t->segment = sn_take(base, &used, (int64_t)sizeof(segment) * rows);
    return used;
}

int64_t sn_span_scratch(const sn_span *span, int32_t threads)
{
    tile t;
    return lay_out(&t, span, threads, TILE_ROWS, NULL);
}

static void norm_rows(tile *t, const sn_norm *norm, const sn_linear *next, int32_t first, int32_t end)
{
    int64_t hidden = t->span->hidden;
    for (int64_t row = first; row < end; row++)
        sn_norm_row(norm, t->x + row * hidden, t->normed + row * hidden, (int32_t)hidden, 0);
    sn_linear_prepare_part(next, t->normed, hidden, t->rows, t->prepared, first, end, 0, hidden);
}

static void attention_norm(void *arg, int32_t first, int32_t end, int32_t thread)
{
    tile *t = arg;
    (void)thread;
    norm_rows(t, &t->block->norm, &t->block->qkv, first, end);
}

static void mlp_norm(void *arg, int32_t first, int32_t end, int32_t thread)
{
    tile *t = arg;
    (void)thread;
    norm_rows(t, &t->block->mlp_norm, &t->block->gate_up, first, end);
}

/* Turns the segment's keys of KV heads first to end and their queries, and stores the keys and values. */
static void rotate_and_append(tile *t, const segment *s, int32_t first, int32_t end)
{
    const sn_attention *a = &t->span->attention;
    int32_t group = a->heads / a->kv_heads, head_dim = a->key_dim;
    int64_t width = qkv_width(t->span), keys = (int64_t)a->heads * head_dim, values = (int64_t)a->kv_heads * head_dim;
    for (int64_t i = 0; i < s->piece.count; i++) {
        float *row = t->qkv + (s->piece.row + i) * width;
        const float *cos = s->cos + i * head_dim, *sin = s->sin + i * head_dim;
        sn_rotate(row + (int64_t)first * group * head_dim, head_dim, (end - first) * group, cos, sin, head_dim);
        sn_rotate(row + keys + (int64_t)first * head_dim, head_dim, end - first, cos, sin, head_dim);
    }
    sn_kv_append(a, t->kv, &s->piece, t->number, t->qkv + keys, t->qkv + keys + values, width, first, end);
}

static void append(void *arg, int32_t first, int32_t end, int32_t thread)
{
    tile *t = arg;
    (void)thread;
    for (int32_t index = first; index < end; index++)
        rotate_and_append(t, &t->segment[index], 0, t->span->attention.kv_heads);
}

/* Parts: ranges of KV heads of each segment. */
static void attend(void *arg, int32_t first, int32_t end, int32_t thread)
{
    tile *t = arg;
    const sn_attention *a = &t->span->attention;
    int32_t group = a->heads / a->kv_heads, kv_heads = a->kv_heads / t->splits;
    int64_t width = qkv_width(t->span), out = (int64_t)a->heads * a->key_dim, of_kv_head = out / a->kv_heads;
    float *scratch = t->attend_scratch + thread * t->attend_floats;
    for (int32_t index = first; index < end; index++) {
        const segment *s = &t->segment[index / t->splits];
        const sn_piece *piece = &s->piece;
        int32_t kv_first = kv_heads * (index % t->splits), kv_end = kv_first + kv_heads;
        if (!t->appended)
            rotate_and_append(t, s, kv_first, kv_end);
        sn_attend(a, t->kv, piece, t->number, 0, piece->count, t->qkv + piece->row * width, width,
                  t->attended + piece->row * out, out, kv_first * group, kv_end * group, scratch);
        sn_linear_prepare_part(&t->block->out, t->attended, out, t->rows, t->prepared, piece->row,
                               piece->row + piece->count, kv_first * of_kv_head, kv_end * of_kv_head);
    }
}

/* Into how many ranges the KV heads can be divided: the queries' channels of each are whole groups. */
static int32_t head_ranges(const sn_span *span)
{
    const sn_attention *a = &span->attention;
    int64_t channels = (int64_t)a->heads / a->kv_heads * a->key_dim;
    int32_t together = 1;
    while (together < SN_GROUP && together * channels % SN_GROUP)
        together *= 2;
    return a->kv_heads % together ? 1 : a->kv_heads / together;
}

/* Parts: tiles of the gate with the same tiles of what goes through it; all of them where they do not lie alike. */
static void gate(void *arg, int32_t first, int32_t end, int32_t thread)
{
    tile *t = arg;
    const sn_linear *linear = &t->block->gate_up;
    int64_t hidden = t->span->hidden, inner = t->span->intermediate, tiles = inner / SN_TILE;
    int64_t first_col = (int64_t)first * SN_TILE, columns = (int64_t)(end - first) * SN_TILE;
    (void)thread;
    if (inner % SN_TILE) {
        first_col = 0, columns = inner;
        sn_linear_run(linear, t->normed, hidden, t->rows, t->gate_up, 2 * inner, 0, t->prepared, 0,
                      sn_linear_parts(linear));
    } else {
        sn_linear_run(linear, t->normed, hidden, t->rows, t->gate_up, 2 * inner, 0, t->prepared, first, end);
        sn_linear_run(linear, t->normed, hidden, t->rows, t->gate_up, 2 * inner, 0, t->prepared,
                      (int32_t)tiles + first, (int32_t)tiles + end);
    }
    for (int64_t row = 0; row < t->rows; row++) {
        float *at = t->gate_up + row * 2 * inner + first_col;
        sn_activate(&(sn_activation){SN_SILU, 0, 0}, at, at + inner, (int32_t)columns);
    }
    sn_linear_prepare_part(&t->block->down, t->gate_up, 2 * inner, t->rows, t->gated, 0, t->rows, first_col,
                           first_col + columns);
}

/* The tile's rows, first to first + rows of the batch, as segments with rows counted from the tile's first. */
static void cut_segments(tile *t, int64_t first, const sn_piece *pieces, const sn_rotation *rotations,
                         int32_t n_pieces)
{
    int64_t head_dim = t->span->attention.key_dim;
    t->segments = t->appended = 0;
    for (int32_t index = 0; index < n_pieces; index++) {
        const sn_piece *piece = &pieces[index];
        int64_t row = largest(first, piece->row), end = piece->row + piece->count;
        if (end > first + t->rows)
            end = first + t->rows;
        for (int64_t begin = row; row < end;) {
            t->appended |= row > begin;
            int64_t offset = row - piece->row, position = piece->start + offset;
            int64_t count = SN_PAGE - position % SN_PAGE;
            if (count > end - row)
                count = end - row;
            segment *s = &t->segment[t->segments++];
            s->piece = *piece;
            s->piece.row = (int32_t)(row - first);
            s->piece.start = (int32_t)position;
            s->piece.count = (int32_t)count;
            s->cos = rotations[index].cos + offset * head_dim;
            s->sin = rotations[index].sin + offset * head_dim;
            row += count;
        }
    }
}

static void block_forward(tile *t, sn_pool *pool)
{
    const sn_span *span = t->span;
    const sn_block *block = t->block;
    int64_t rows = t->rows, hidden = span->hidden, width = qkv_width(span);
    int64_t attended = (int64_t)span->attention.heads * span->attention.key_dim, inner = span->intermediate;

    sn_pool_run(pool, attention_norm, t, (int32_t)rows, 1);
    sn_multiply(pool, &block->qkv, t->normed, hidden, rows, t->qkv, width, 0, t->prepared);
    if (t->appended)
        sn_pool_run(pool, append, t, t->segments, 1);
    t->splits = t->segments < 2 * sn_pool_width(pool) ? head_ranges(span) : 1;
    sn_pool_run(pool, attend, t, t->segments * t->splits, 1);
    sn_multiply(pool, &block->out, t->attended, attended, rows, t->x, hidden, 1, t->prepared);

    sn_pool_run(pool, mlp_norm, t, (int32_t)rows, 1);
    sn_pool_run(pool, gate, t, inner % SN_TILE ? 1 : (int32_t)(inner / SN_TILE), 1);
    sn_multiply(pool, &block->down, t->gate_up, 2 * inner, rows, t->x, hidden, 1, t->gated);
}

void sn_span_forward(const sn_span *span, sn_pool *pool, int32_t first_block, int32_t end_block, float *x,
                     int64_t rows, const sn_piece *pieces, const sn_rotation *rotations, int32_t n_pieces,
                     const sn_kv *kv, void *scratch)
{
    tile t = {.span = span, .kv = kv};
    lay_out(&t, span, sn_pool_threads(pool), rows < TILE_ROWS ? rows : TILE_ROWS, scratch);
    for (int32_t number = first_block; number < end_block; number++) {
        t.number = number;
        t.block = &span->blocks[number - span->first_block];
        for (int64_t first = 0; first < rows; first += TILE_ROWS) {
            t.rows = rows - first < TILE_ROWS ? rows - first : TILE_ROWS;
            t.x = x + first * span->hidden;
            cut_segments(&t, first, pieces, rotations, n_pieces);
            block_forward(&t, pool);
        }
    }
    sn_pool_rest(pool);
}
