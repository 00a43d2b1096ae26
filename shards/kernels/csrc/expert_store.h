/* Experts of which only some are in memory: the hottest, and those in use. Threads of its own read the others. */
#ifndef SN_EXPERT_STORE_H
#define SN_EXPERT_STORE_H

#include <stdint.h>

typedef struct sn_expert_store sn_expert_store;

/* For the compute thread: the experts `wanted` (ascending) of experts number `number` are needed now. */
void sn_store_want(sn_expert_store *store, int32_t number, const int32_t *wanted, int32_t n);

/* Those of the wanted that are in memory and were not taken before, of which there is one at least: their places in
   `wanted`, ascending. They stay until the next call. Returns how many; 0 once all were taken; -1 where reading failed. */
int32_t sn_store_take(sn_expert_store *store, int32_t *places);

/* These may be wanted soon: they are read when nothing wanted is. */
void sn_store_expect(sn_expert_store *store, int32_t number, const int32_t *experts, int32_t n);

#endif
