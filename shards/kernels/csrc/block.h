/* Llama blocks of a span, one after the other, over packed rows of many sessions. */
#ifndef SN_BLOCK_H
#define SN_BLOCK_H

#include <stdint.h>

#include "attention.h"
#include "pool.h"
#include "rows.h"
#include "sn.h"

typedef struct sn_block {
    sn_norm norm;     /* (hidden) */
    sn_norm mlp_norm; /* (hidden) */
    sn_linear qkv;         /* hidden -> q, k, v stacked: (heads + 2 kv_heads) * head_dim */
    sn_linear out;         /* heads * head_dim -> hidden */
    sn_linear gate_up;     /* hidden -> gate, up stacked: 2 * intermediate */
    sn_linear down;        /* intermediate -> hidden */
} sn_block;

typedef struct sn_span {
    const sn_block *blocks;
    int32_t first_block; /* absolute number of blocks[0] */
    int32_t n_blocks;
    int32_t hidden, intermediate;
    sn_attention attention;
} sn_span;

/* Of one piece: cos and sin for its first row; the next row's are head_dim floats on. The half-rotation's minus
   is in sin: rotated = x * cos + (x with its halves swapped) * sin. */
typedef struct sn_rotation {
    const float *cos, *sin;
} sn_rotation;

/* Bytes of scratch memory for any number of rows, 64-byte aligned by the caller. */
int64_t sn_span_scratch(const sn_span *span, int32_t threads);

/* x (rows, hidden), packed, becomes the output of blocks first_block to end_block (absolute). The pieces, in the
   order of their rows, are all of x; their keys and values are appended to kv. pool may be NULL. */
void sn_span_forward(const sn_span *span, sn_pool *pool, int32_t first_block, int32_t end_block, float *x,
                     int64_t rows, const sn_piece *pieces, const sn_rotation *rotations, int32_t n_pieces,
                     const sn_kv *kv, void *scratch);

#endif
