/* Causal grouped-query attention over paged KV memory, on the CPU.

   A slot is the memory of one page (SN_PAGE tokens) of one block. From its first byte on it holds, as the
   attention of its block has it,
     keys         [kv_heads][key_dim][SN_PAGE]     transposed, so that one vector holds one channel of many tokens
     values       [kv_heads][SN_PAGE][value_dim]   not where they are shared
   and, for int8, floats, one a token and head,
     key scales   [kv_heads][SN_PAGE]
     value scales [kv_heads][SN_PAGE]              not where values are shared
   and behind these, for an indexer, its keys as those of one head, with their scales.

   The result of a query row depends on its own query and on the keys and values it may see, in their order,
   and on nothing else, bit for bit: not on the other rows, the tile, the batch or the heads of a call.

   Nothing here checks its arguments: tables come from the node's own allocator. */
#ifndef SN_ATTENTION_H
#define SN_ATTENTION_H

#include <stdint.h>

#define SN_PAGE 32

enum { SN_KV_FLOAT32 = 0, SN_KV_BFLOAT16 = 1, SN_KV_FLOAT16 = 2, SN_KV_INT8 = 3 };

/* How a block attends: AttentionConfig's numbers. A token at position p sees itself and those before it, with
   `window` those from p - window + 1 on, with `chunk` those from p / chunk * chunk on. */
typedef struct sn_attention {
    int32_t heads, kv_heads; /* heads is a multiple of kv_heads */
    int32_t key_dim, value_dim;
    int32_t shared;     /* the values are the first value_dim channels of the keys */
    float scale;        /* of q . k */
    float softcap;      /* c, if not 0: scores become c * tanh(score / c) */
    int32_t window, chunk; /* 0: none */
    const float *sinks; /* (heads), scores without a value, or NULL */
} sn_attention;

typedef struct sn_kv {
    void *data;
    int64_t slot_bytes;
    int32_t dtype; /* SN_KV_... */
} sn_kv;

typedef struct sn_piece {
    const int32_t *table; /* (blocks of the session, pages): slots */
    int32_t pages;
    int32_t first_block;  /* absolute number of the table's first block */
    int32_t row;          /* first row in the batch */
    int32_t start;        /* position of that row in the session */
    int32_t count;        /* rows */
    const int32_t *states; /* as table, of slots for states; NULL: none */
    const int32_t *saved;  /* (blocks of the session): of the states before row `again`; NULL: none */
    int32_t again;         /* 0: the rows begin with saved; else it is written */
} sn_piece;

/* Stores the keys and values of all rows of the piece for KV heads kv_first to kv_end: row i (of the piece) is read
   at k + (piece->row + i) * ld, kv_heads * key_dim floats, and v likewise; v is not read where values are shared. */
void sn_kv_append(const sn_attention *attention, const sn_kv *kv, const sn_piece *piece, int block, const float *k,
                  const float *v, int64_t ld, int kv_first, int kv_end);

/* Floats of scratch memory that one thread needs for sn_attend. Any alignment will do. */
int64_t sn_attend_scratch(const sn_attention *attention);

/* Rows first to first + count of the piece, whose keys and values, and all before them that they see, must have been
   appended; for query heads head_first to head_end, any of them: threads may share a row. q points at row `first`
   of the piece: row first + i, all its heads, is at q + i * ldq, its result goes to out + i * ldo. Tables may have
   -1 for pages of which no row sees anything. */
void sn_attend(const sn_attention *attention, const sn_kv *kv, const sn_piece *piece, int block, int first, int count,
               const float *q, int64_t ldq, float *out, int64_t ldo, int head_first, int head_end, float *scratch);

/* The index keys of a block, `dim` values a token, which lie behind its keys and values: as attention and memory. */
sn_attention sn_index_attention(int32_t dim);
sn_kv sn_index_kv(const sn_attention *attention, const sn_kv *kv);

/* Scores of the tokens of pages first to end for one row: the sum over heads of weight * max(0, q . k), to
   out[SN_PAGE * page]. q: (heads, dim). scratch: (heads + dim) * SN_PAGE floats. Those of unwritten tokens may be anything. */
void sn_index_scores(const sn_attention *index, const sn_kv *kv, const sn_piece *piece, int block, int64_t first,
                     int64_t end, const float *q, const float *weights, int32_t heads, float *out, float *scratch);

/* Bytes of scratch memory for sn_attend_chosen beside that of sn_attend. Any alignment will do. */
int64_t sn_chosen_scratch(const sn_attention *attention, int32_t top);

/* As sn_attend for one row, which sees `tokens` of the piece, `top` of them. */
void sn_attend_chosen(const sn_attention *attention, const sn_kv *kv, const sn_piece *piece, int block,
                      const int32_t *tokens, int32_t top, const float *q, float *out, int head_first, int head_end,
                      float *scratch, void *gathered);

#endif
