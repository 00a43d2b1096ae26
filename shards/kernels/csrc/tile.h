/* Rows of a batch on their way through the parts of a block: see block.c. */
#ifndef SN_TILE_H
#define SN_TILE_H

#include "block.h"

/* Rows of one piece within one page: what one thread appends, so that no two write to the same page. */
typedef struct {
    sn_piece piece; /* clipped; its row counts from the tile's first */
    int32_t index;  /* the piece's number */
    int32_t offset; /* of the first row in the piece */
} sn_segment;

typedef struct {
    const sn_kv *kv;
    const sn_rotation *rotations;
    const sn_block *block;
    int32_t n_pieces;
    int32_t number;   /* of the block, absolute */
    int32_t hidden;
    int32_t segments; /* in this tile */
    int32_t appended; /* before attention. Else each thread appends what it attends to */
    int32_t splits;   /* ranges of heads that share a segment's attention */
    int64_t rows;     /* in this tile */
    float *x;         /* the tile's first row */
    const float *beside; /* what the block reads beside it, beside_ld floats a row */
    int64_t beside_ld;
    float *normed;    /* x as attention reads it and, unless they are parallel, the MLP */
    float *branch;    /* what is added to x after norms or factors: of the tile's first row */
    float *qkv, *q_latent, *queries, *attended, *values, *attend_scratch;
    int64_t attend_floats; /* of attend_scratch, each thread */
    int64_t head_bytes;    /* of head_scratch, each thread */
    char *head_scratch;
    void *prepared, *kv_prepared; /* inputs of the next linears */
    float *mlp_normed, *experts_normed, *router_normed, *gate_up, *experts_out;
    void *mlp_prepared, *gated; /* inputs of gate_up and of down */
    float *side;                /* what of beside goes through the gate */
    void *side_prepared, *side_gated; /* inputs of side_gate and of side_projection */
    void *experts_scratch;
    sn_segment *segment;
} sn_tile;

/* Whether x takes a part's output as it is: else it goes through `branch`. */
static inline int sn_adds_attention(const sn_block *block)
{
    return block->attention_out_norm.kind == SN_NO_NORM && block->residual_multiplier == 1.0f;
}

static inline int sn_adds_mlp(const sn_block *block)
{
    return block->mlp_out_norm.kind == SN_NO_NORM && block->residual_multiplier == 1.0f && block->experts == NULL;
}

/* Rows first to end: mlp_normed of x, and what of it the MLP and the experts read. */
void sn_mlp_inputs(sn_tile *t, int32_t first, int32_t end);

/* attention(norm(x)) of the tile's rows, added to x or, unless sn_adds_attention, written to branch. */
void sn_block_attention(sn_tile *t, sn_pool *pool);

/* The same with latent attention. */
void sn_latent_attention(sn_tile *t, sn_pool *pool);

/* n values of q at `position` times the block's factor there. */
void sn_scale_query(const sn_block *block, int64_t position, float *x, int64_t n);

/* cos and sin of row `row` of the segment. */
static inline sn_rotation sn_rotation_of(const sn_tile *t, const sn_segment *s, int64_t row)
{
    const sn_rotation *of_piece = &t->rotations[(int64_t)t->block->rope * t->n_pieces + s->index];
    int64_t at = (s->offset + row) * t->block->rotary;
    return (sn_rotation){of_piece->cos + at, of_piece->sin + at};
}

/* What follows attention: the product with `out`, whose input `from`, `ld` floats a row, has been prepared. */
void sn_attention_out(sn_tile *t, sn_pool *pool, const float *from, int64_t ld);

/* MLP and experts of the rows, after sn_mlp_inputs, added to x; and the end of the block, if there is no side. */
void sn_block_mlp(sn_tile *t, sn_pool *pool);

/* What the rows read beside x, added to it; and the end of the block. */
void sn_block_side(sn_tile *t, sn_pool *pool);

/* Number of the block whose keys and values the tile's block reads. */
static inline int32_t sn_kv_block(const sn_tile *t)
{
    return t->block->kv_of >= 0 ? t->block->kv_of : t->number;
}

#endif
