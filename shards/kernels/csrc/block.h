/* Blocks of a span, one after the other, over packed rows of many sessions. What a block computes is said in
   shards/formats/blocks/block.py. */
#ifndef SN_BLOCK_H
#define SN_BLOCK_H

#include <stdint.h>

#include "attention.h"
#include "experts.h"
#include "mlp.h"
#include "pool.h"
#include "rows.h"
#include "sn.h"
#include "state.h"

enum { SN_NO_GATE = 0, SN_CHANNEL_GATE = 1, SN_HEAD_GATE = 2 };

/* What chooses the tokens that a row sees: IndexerConfig's numbers. */
typedef struct sn_indexer {
    sn_linear q;       /* q's latent -> heads * dim */
    sn_linear k;       /* hidden -> dim */
    sn_linear weights; /* hidden -> heads */
    sn_norm norm;      /* of k */
    int32_t heads, dim;
} sn_indexer;

/* What is particular to multi-head latent attention. */
typedef struct sn_latent {
    sn_linear q_a; /* hidden -> q_rank; 0 rows: q reads the block's input */
    sn_norm q_norm;
    sn_linear q;    /* -> heads * (nope_dim + rope_dim) */
    sn_linear kv_a; /* hidden -> kv_rank + rope_dim */
    sn_norm kv_norm;
    const sn_linear *k_b; /* (heads): nope_dim -> kv_rank */
    const sn_linear *v_b; /* (heads): kv_rank -> value_dim */
    int32_t nope_dim, rope_dim, value_dim;
    const sn_indexer *indexer; /* NULL: none of its own */
    int32_t top;               /* tokens that a row sees, by its own or another's indexer; 0: all */
} sn_latent;

typedef struct sn_block {
    sn_norm norm, attention_out_norm, mlp_norm, mlp_out_norm;
    sn_attention attention; /* 0 heads: none */
    const sn_latent *latent; /* NULL: the next nine */
    sn_linear qkv;           /* hidden -> q, k, v (without keys_as_values) and the gate, stacked */
    sn_norm q_norm, k_norm;  /* weights of all heads */
    sn_norm v_norm;          /* of each head by itself */
    int32_t norm_over_all;   /* q_norm and k_norm: all heads as one, else each by itself */
    int32_t norm_after_rope;
    int32_t keys_as_values; /* v is k before norm and rope */
    int32_t gate;           /* SN_..._GATE: what the output is multiplied by the sigmoid of */
    sn_linear out;
    int32_t rope;         /* number of its rotations; -1: none */
    int32_t rotary;       /* dimensions that are turned */
    float scale_beta;     /* q at position p is multiplied by 1 + beta * ln(1 + floor((p + offset) / period)) */
    int32_t scale_period; /* 0: it is not */
    int32_t scale_offset;
    sn_mlp mlp;                /* inner 0: none */
    const sn_experts *experts; /* NULL: none */
    sn_norm experts_norm;      /* of x for the experts, and */
    sn_norm router_norm;       /* of x for the router; without: they read what the MLP reads */
    sn_norm dense_out_norm, experts_out_norm; /* where there is an MLP beside experts */
    int32_t parallel;                         /* attention and MLP read the same x */
    float residual_multiplier;
    float scalar;               /* of the output */
    int32_t kv_of;              /* whose keys and values it reads, absolute; -1: it makes its own */
    int32_t side;               /* values beside x that it reads; 0: none */
    sn_linear side_gate;        /* hidden -> side */
    sn_linear side_projection;  /* side -> hidden */
    sn_activation side_activation;
    sn_norm side_norm;
    const sn_state *state; /* NULL: none */
    float attention_factor, state_factor, mlp_factor;
} sn_block;

typedef struct sn_span {
    const sn_block *blocks;
    int32_t first_block; /* absolute number of blocks[0] */
    int32_t n_blocks;
    int32_t hidden;
} sn_span;

/* Of one piece: cos and sin for its first row; the next row's are as many floats on as are turned. See sn_rotate. */
typedef struct sn_rotation {
    const float *cos, *sin;
} sn_rotation;

/* Memory for what indexers choose; nothing of it is read before it is written. */
typedef struct sn_choice {
    int32_t *tokens; /* (rows of the batch, most): what each row sees, ascending, where that is not all */
    int64_t most;    /* the largest `top` of the blocks */
    float *scores;   /* (threads, longest) */
    int64_t longest; /* whole pages of the longest piece's tokens, with those before it */
} sn_choice;

/* Bytes of scratch memory for any number of rows, 64-byte aligned by the caller. */
int64_t sn_span_scratch(const sn_span *span, int32_t threads);

/* x (rows, hidden), packed, becomes the output of blocks first_block to end_block (absolute). beside, `beside_ld`
   floats a row: what these blocks read beside x, in their order. The pieces, in the order of their rows, are all of
   x; their keys and values are appended to kv. rotations: (kinds, pieces), a block's `rope` being the number of its
   kind. states: of the pieces' states. choice: NULL where no block has an indexer. pool may be NULL. */
void sn_span_forward(const sn_span *span, sn_pool *pool, int32_t first_block, int32_t end_block, float *x,
                     int64_t rows, const float *beside, int64_t beside_ld, const sn_piece *pieces,
                     const sn_rotation *rotations, int32_t n_pieces, const sn_kv *kv, const sn_states *states,
                     const sn_choice *choice, void *scratch);

/* The first piece that lacks, for blocks first_block to end_block, the slot which its states come from, or names one that
   is not of n_slots, nor -1 for those that are not kept; -1: none does. */
int32_t sn_states_fit(const sn_span *span, int32_t first_block, int32_t end_block, const sn_piece *pieces,
                      int32_t n_pieces, int64_t n_slots);

#endif
