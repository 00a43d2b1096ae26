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

/* What a state's part of a block needs: floats of a row of qkv, decays and low, of `carried` and of each thread; bytes of
   the inputs of its linears. */
typedef struct {
    int64_t qkv, decays, low, carried, recur, prepared[SN_STATE_LINEARS];
} sn_state_needs;

typedef struct {
    const sn_kv *kv;
    const sn_states *states;
    const sn_rotation *rotations;
    const sn_block *block;
    int32_t n_pieces;
    int32_t number;   /* of the block, absolute */
    int32_t hidden;
    int32_t segments; /* in this tile */
    int32_t appended; /* before attention. Else each thread appends what it attends to */
    int32_t splits;   /* ranges of heads that share a segment's attention */
    int64_t rows;     /* in this tile */
    int64_t at;       /* its first row in the batch */
    float *x;         /* the tile's first row */
    const float *beside; /* what the block reads beside it, beside_ld floats a row */
    int64_t beside_ld;
    float *normed;    /* x as attention reads it and, unless they are parallel, the MLP */
    float *kept;      /* what the state makes, where attention's is in branch */
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
    sn_stretch *stretch; /* the segments, as states see them */
    sn_run *run;
    int32_t n_runs;
    float *decays, *low, *recur_scratch;
    int64_t recur_floats; /* of recur_scratch, each thread */
    float *carried;       /* two states */
    void *state_prepared[SN_STATE_LINEARS];
    const sn_choice *choice;
    int64_t choosing;  /* the first row of those whose tokens are being chosen */
    float *index;      /* what the indexer makes of the rows */
    void *index_prepared[3]; /* inputs of its linears */
    char *index_scratch;
    int64_t index_bytes; /* of it, each thread */
} sn_tile;

static inline int sn_mixes(const sn_block *block) { return block->attention.heads || block->state != NULL; }

static inline int sn_transforms(const sn_block *block) { return block->mlp.inner || block->experts != NULL; }

/* Whether x takes a part's output as it is: else it goes through `branch`. */
static inline int sn_adds_mixed(const sn_block *block)
{
    return !sn_mixes(block) || (block->attention_out_norm.kind == SN_NO_NORM && block->residual_multiplier == 1.0f &&
                                block->attention_factor == 1.0f && block->state_factor == 1.0f);
}

static inline int sn_adds_mlp(const sn_block *block)
{
    return !sn_transforms(block) || (block->mlp_out_norm.kind == SN_NO_NORM && block->residual_multiplier == 1.0f &&
                                     block->mlp_factor == 1.0f && block->experts == NULL);
}

/* Rows first to end: mlp_normed of x, and what of it the MLP and the experts read. */
void sn_mlp_inputs(sn_tile *t, int32_t first, int32_t end);

/* Rows first to end of x, normed for attention, unless the state's part has done so. */
void sn_norm_rows(sn_tile *t, int32_t first, int32_t end);

/* What the state's part makes of norm(x) of the tile's rows, added to x or, unless sn_adds_mixed, written to branch, or
   kept where there is attention too. */
void sn_block_state(sn_tile *t, sn_pool *pool, const sn_piece *pieces);
sn_state_needs sn_state_needs_of(const sn_state *state, int64_t rows);

/* attention(norm(x)) of the tile's rows, added to x or, unless sn_adds_mixed, written to branch. */
void sn_block_attention(sn_tile *t, sn_pool *pool);

/* The same with latent attention. */
void sn_latent_attention(sn_tile *t, sn_pool *pool);

/* Which tokens the rows see, by the block's indexer: after norm and q's latent. */
void sn_index_tokens(sn_tile *t, sn_pool *pool);

/* What an indexer makes of a row, in floats. */
int64_t sn_index_floats(const sn_indexer *indexer);

/* n values of q at `position` times the block's factor there. */
void sn_scale_query(const sn_block *block, int64_t position, float *x, int64_t n);

/* cos and sin of row `row` of the segment. */
static inline sn_rotation sn_rotation_of(const sn_tile *t, const sn_segment *s, int64_t row)
{
    const sn_rotation *of_piece = &t->rotations[(int64_t)t->block->rope * t->n_pieces + s->index];
    int64_t at = (s->offset + row) * t->block->rotary;
    return (sn_rotation){of_piece->cos + at, of_piece->sin + at};
}

/* What ends attention and the state's part: the product with `out`, whose input `from`, `ld` floats a row, has been
   prepared; added to x or, unless sn_adds_mixed, written to `branch`. */
void sn_mixed_out(sn_tile *t, sn_pool *pool, const sn_linear *out, const float *from, int64_t ld, const void *prepared,
                  float *branch);

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
