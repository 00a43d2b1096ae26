/* A few persistent threads that share the parts of one job after another. */
#ifndef SN_POOL_H
#define SN_POOL_H

#include <stdint.h>

/* The workers' name in the system's tables of threads, on Linux. */
#define SN_WORKER_NAME "swarm-worker"

typedef struct sn_pool sn_pool;

/* Computes parts first..end-1 of a job; called from several threads at once with ranges that do not overlap.
   thread: 0 is the caller's, up to sn_pool_threads(pool) - 1; for per-thread scratch memory. */
typedef void (*sn_job)(void *arg, int32_t first, int32_t end, int32_t thread);

/* threads: how many compute, the caller's own included. NULL where memory or threads are refused. */
sn_pool *sn_pool_new(int32_t threads);

/* Ends and joins the threads. No job may be running. NULL is allowed. */
void sn_pool_free(sn_pool *pool);

/* 1 for NULL, which stands for the caller alone. */
int32_t sn_pool_threads(const sn_pool *pool);

/* How many of the threads compute from the next job on, the caller's own included: 1 to sn_pool_threads(pool), all
   at first. The same parts are computed either way. The caller of sn_pool_run sets it. */
void sn_pool_set_width(sn_pool *pool, int32_t width);
int32_t sn_pool_width(const sn_pool *pool);

/* Runs all parts of a job, at least grain (>= 1) of them at a time, and returns when they are done. One caller at a
   time. No thread is woken for a job of up to grain parts. */
void sn_pool_run(sn_pool *pool, sn_job job, void *arg, int32_t parts, int32_t grain);

/* No job comes soon: the threads sleep at once instead of looking out for one. */
void sn_pool_rest(sn_pool *pool);

#endif
