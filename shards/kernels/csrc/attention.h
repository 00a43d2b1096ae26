/* Causal grouped-query attention over paged KV memory, on the CPU.

   A slot is the memory of one page (SN_PAGE tokens) of one block. Slot s of `data` holds
     keys   [kv_heads][head_dim][SN_PAGE]   transposed, so that one vector holds one channel of many tokens
     values [kv_heads][SN_PAGE][head_dim]
   and, for int8, slot s of `scales` holds [2][kv_heads][SN_PAGE] floats, one a token and head.

   The result of a query row depends on its own query and on the keys and values it may see, in their order,
   and on nothing else, bit for bit: not on the other rows, the tile, the batch or the function called.

   Nothing here checks its arguments: tables come from the node's own allocator. head_dim is a multiple of 8,
   heads a multiple of kv_heads. */
#ifndef SN_ATTENTION_H
#define SN_ATTENTION_H

#include <stdint.h>

#define SN_PAGE 32

enum { SN_KV_FLOAT32 = 0, SN_KV_BFLOAT16 = 1, SN_KV_FLOAT16 = 2, SN_KV_INT8 = 3 };

typedef struct sn_kv {
    void *data;
    float *scales;   /* int8 only, else NULL */
    int32_t dtype;   /* SN_KV_... */
    int32_t kv_heads;
    int32_t head_dim;
    int32_t page;    /* SN_PAGE */
} sn_kv;

typedef struct sn_piece {
    const int32_t *table; /* (blocks of the session, pages): slots */
    int32_t pages;
    int32_t first_block;  /* absolute number of the table's first block */
    int32_t row;          /* first row in the batch */
    int32_t start;        /* position of that row in the session */
    int32_t count;        /* rows */
} sn_piece;

/* Stores the keys and values of all rows of the piece for KV heads kv_first to kv_end: row i (of the piece) is read
   at k + (piece->row + i) * ld, kv_heads * head_dim floats, and v likewise. */
void sn_kv_append(const sn_kv *kv, const sn_piece *piece, int block, const float *k, const float *v, int64_t ld,
                  int kv_first, int kv_end);

/* Floats of scratch memory that one thread needs for the calls below. Any alignment will do. */
int64_t sn_attend_scratch(int heads, int kv_heads, int head_dim);

/* One query row: position piece->start + row_in_piece sees itself and all before it, which must have been
   appended. q points at that row, out at its place in the result; both heads * head_dim floats. */
void sn_attend_row(const sn_kv *kv, const sn_piece *piece, int block, int row_in_piece, const float *q, float *out,
                   int heads, float *scratch);

/* Rows first to first + count of the piece. q points at row `first` of the piece: row first + i is at
   q + i * ldq, its result goes to out + i * ldo. Pages are read once for several rows. */
void sn_attend_rows(const sn_kv *kv, const sn_piece *piece, int block, int first, int count, const float *q,
                    int64_t ldq, float *out, int64_t ldo, int heads, float *scratch);

/* As sn_attend_rows, for the query heads of KV heads kv_first to kv_end alone (q and out still point at whole
   rows): lets threads share one row. */
void sn_attend_heads(const sn_kv *kv, const sn_piece *piece, int block, int first, int count, const float *q,
                     int64_t ldq, float *out, int64_t ldo, int heads, int kv_first, int kv_end, float *scratch);

#endif
