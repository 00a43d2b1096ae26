/* Experts of which only some are in memory: those in use, and the hottest. Threads of the store read the others from
   files and pack them, in the order: wanted now, expected soon. One thread computes.

   An expert's heat is how often it was wanted, the last time counting most. The coldest makes room. */
#ifndef SN_EXPERT_STORE_H
#define SN_EXPERT_STORE_H

#include <stdint.h>

#include "mlp.h"

enum { SN_STORE_READ = 1, SN_STORE_SHORT = 2, SN_STORE_CHANGED = 3 }; /* why reading failed */

/* Rows of a matrix as they lie in a file, in the form that sn_pack_file takes. */
typedef struct sn_file_rows {
    int64_t offset, stride, rows, row_bytes;
    int32_t fd;
    int32_t may_change; /* bytes of other tensors are still being written into the file */
} sn_file_rows;

typedef struct sn_file_mlp {
    sn_file_rows gate, up, down; /* gate.rows 0: there is none */
} sn_file_mlp;

/* Of one block: `mlps` (count) have everything but their weights. */
typedef struct sn_stored_experts {
    sn_mlp *mlps;
    const sn_file_mlp *files;
    int32_t count;
} sn_stored_experts;

typedef struct sn_store_state {
    int64_t wanted, held, late, read; /* experts: wanted; of them in memory, or on their way; all that were read */
    int64_t read_bytes;
    int64_t waited_ns; /* of the compute thread */
} sn_store_state;

typedef struct sn_expert_store sn_expert_store;

/* `slots` (n_slots >= 1, slot_bytes) is memory, 64-byte aligned, for one packed expert each: gate and up, then down from
   the next multiple of 64 bytes on. `half_life`: so many wants of each block, and a want counts half. What is passed is
   used until sn_store_free. NULL: no threads or memory. */
sn_expert_store *sn_store_new(const sn_stored_experts *blocks, int32_t n_blocks, void *slots, int64_t slot_bytes,
                              int32_t n_slots, int32_t readers, double half_life);
void sn_store_free(sn_expert_store *store);

/* Bytes of a slot for this expert. */
int64_t sn_store_slot_bytes(const sn_mlp *mlp);

/* For the compute thread: the experts `wanted` (ascending) of block `number` are needed now. */
void sn_store_want(sn_expert_store *store, int32_t number, const int32_t *wanted, int32_t n);

/* Those of the wanted that are in memory and were not taken before, of which there is one at least: their places in
   `wanted`, ascending. They stay until the next call. Returns how many; 0 once all were taken; -1 where reading failed. */
int32_t sn_store_take(sn_expert_store *store, int32_t *places);

/* These may be wanted soon. */
void sn_store_expect(sn_expert_store *store, int32_t number, const int32_t *experts, int32_t n);

/* Why reading failed since the last call, 0: it did not; with errno << 8. Reading is tried again from now on. */
int32_t sn_store_failure(sn_expert_store *store);

void sn_store_look(sn_expert_store *store, sn_store_state *state);

#endif
