/* A mixture of experts: the router's choice for each row, and the product of each expert with its rows. */
#ifndef SN_EXPERTS_H
#define SN_EXPERTS_H

#include "expert_store.h"
#include "mlp.h"
#include "pool.h"

enum { SN_MOST_EXPERTS = 4096 }; /* of one block */

enum { SN_SOFTMAX = 0, SN_SIGMOID = 1, SN_SOFTMAX_OF_USED = 2, SN_SPARSEMIXER = 3 };

/* RouterConfig of shards/formats/blocks/experts.py. */
typedef struct sn_router {
    sn_linear linear;          /* hidden -> count, its bias included */
    const float *correction;   /* (count), or NULL */
    const float *expert_scale; /* (count), or NULL */
    int32_t scores;            /* SN_SOFTMAX ... */
    int32_t groups, used_groups;
    int32_t top2; /* groups are compared by the sum of their two best scores, else by the best */
    int32_t renormalise;
    int32_t scale_input;
    float sum_floor, scaling, jitter;
} sn_router;

typedef struct sn_experts {
    sn_router router;
    const sn_mlp *experts;        /* (count), of equal sizes */
    const sn_mlp *shared;         /* for all rows, or NULL */
    const sn_linear *shared_gate; /* hidden -> 1: its sigmoid multiplies the shared one's output; or NULL */
    const sn_linear *latent_in;   /* hidden -> width: experts, but for the shared one, read its outputs; or NULL */
    const sn_linear *latent_out;  /* width -> hidden: of the sum of what they give; with latent_in alone */
    sn_expert_store *store;       /* that reads the experts' weights as they are needed; NULL: all are in memory */
    const struct sn_experts *next; /* of the next block: with a store, what its router says of this block's rows is read
                                      in advance; or NULL */
    int32_t hidden, count, used;
    int32_t number; /* of these experts in the store */
    int32_t width;  /* values that an expert reads and gives; without latent_in: hidden */
} sn_experts;

/* Chooses for one row, from its `count` scores as the router's linear gave them (changed): experts (used) in ascending
   order, each once, and their weights. Of equal scores the lower expert's wins; a NaN loses against every number, and the
   weights then say NaN. */
void sn_route(const sn_router *router, int32_t count, int32_t used, float *scores, int32_t *experts, float *weights);

/* Bytes of scratch memory for `rows` rows, 64-byte aligned by the caller. */
int64_t sn_experts_scratch(const sn_experts *e, int32_t threads, int64_t rows);

/* out (rows, hidden), other memory than the input, becomes the weighted sum of the experts' outputs and the shared
   one's. x: what experts read, router_x: what the router does (it may be x). Each expert's weights are read once for
   all rows, so more rows together cost less. Every row's bits are the same in any batch, for any number of threads, and
   whatever the store holds. The store fails: out is undefined, and the store keeps why. pool may be NULL. */
void sn_experts_forward(sn_pool *pool, const sn_experts *e, const float *x, const float *router_x, int64_t rows,
                        float *out, void *scratch);

#endif
