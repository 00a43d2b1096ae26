/* Threads take ranges of parts off one counter, so that a thread which the system has put to sleep holds up
   only the range it took: the others do the rest, and a worker that did not wake in time is not waited for.
   Ranges shrink as a job comes to its end, so that all end at about the same time.
   Waiting is a short spin (the next job of a block comes within microseconds), then sleep, and sleep at once when
   the caller rests: nodes that share a machine must not burn each other's cores. Threads are not pinned, for the
   same reason. */
#define _GNU_SOURCE /* for pthread_setname_np */
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define SPIN_HINT() _mm_pause()
#elif defined(__aarch64__)
#define SPIN_HINT() __asm__ volatile("yield")
#else
#define SPIN_HINT() ((void)0)
#endif

/* A pause is 10 to 50 ns: 10 to 50 us until an idle worker sleeps, and 3 to 15 us until the caller lets
   another thread have the core that may be needed for the range it waits for. */
enum { WORKER_SPINS = 1000, CALLER_SPINS = 300, MAX_THREADS = 256 };

/* A thread takes what is left, divided by this many times the other threads: two share a job in few turns, each of
   which costs a cache line's way from core to core; among many, slow cores take little at a time. */
enum { TURNS = 2 };

/* As next part: the job's fields are being changed, nothing can be taken. */
#define CLOSED ((uint64_t)INT32_MAX)

typedef struct {
    sn_pool *pool;
    pthread_t id;
    int32_t number;
} worker;

struct sn_pool {
    /* Number of the job << 32 | next part. A range is taken by compare-and-swap, and the counter is closed while
       the fields change, so whoever takes a range has read that job's fields. */
    _Alignas(64) _Atomic uint64_t next;
    _Alignas(64) _Atomic int32_t done; /* parts finished */
    _Alignas(64) _Atomic(sn_job) job;
    _Atomic(void *) arg;
    _Atomic int32_t parts, grain;
    _Atomic int32_t sleeping; /* workers that wait for awake */
    _Atomic int32_t width;    /* threads that compute now; the workers behind them wait for widened */
    _Atomic int32_t resting;
    _Atomic int32_t stop;
    pthread_mutex_t mutex;
    pthread_cond_t awake, widened;
    pid_t owner; /* threads do not survive a fork */
    int32_t threads, started;
    worker *workers;
};

/* Takes and computes ranges of the present job until none is left. Returns the job's number. */
static uint32_t work(sn_pool *pool, int32_t thread)
{
    uint64_t next = atomic_load(&pool->next);
    int32_t finished = 0; /* parts of the present job, told once: the job cannot change before */
    for (;;) {
        sn_job job = atomic_load(&pool->job);
        void *arg = atomic_load(&pool->arg);
        int32_t parts = atomic_load(&pool->parts);
        int32_t grain = atomic_load(&pool->grain);
        int32_t first = (int32_t)(uint32_t)next;
        if (first >= parts) {
            if (finished)
                atomic_fetch_add(&pool->done, finished);
            finished = 0;
            uint64_t now = atomic_load(&pool->next);
            if (now == next)
                return (uint32_t)(next >> 32);
            next = now; /* the fields may have been another job's */
            continue;
        }
        int32_t others = sn_pool_width(pool) > 1 ? sn_pool_width(pool) - 1 : 1;
        int32_t share = (parts - first) / (TURNS * others), size = share > grain ? share : grain;
        int32_t end = parts - first > size ? first + size : parts;
        uint64_t taken = (next & ~(uint64_t)UINT32_MAX) | (uint32_t)end;
        if (!atomic_compare_exchange_weak(&pool->next, &next, taken))
            continue;
        job(arg, first, end, thread);
        finished += end - first;
        next = atomic_load(&pool->next);
    }
}

static int has_new(sn_pool *pool, uint32_t seen)
{
    return (uint32_t)(atomic_load(&pool->next) >> 32) != seen || atomic_load(&pool->stop);
}

/* Sleeps while the pool is too narrow for this worker. Those that wait so are not woken for every job. */
static void wait_for_width(sn_pool *pool, const worker *self)
{
    if (self->number < atomic_load(&pool->width))
        return;
    pthread_mutex_lock(&pool->mutex);
    while (self->number >= atomic_load(&pool->width) && !atomic_load(&pool->stop))
        pthread_cond_wait(&pool->widened, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}

static void *worker_main(void *start)
{
    worker *self = start;
    sn_pool *pool = self->pool;
    uint32_t seen = 0;
    for (;;) {
        wait_for_width(pool, self);
        for (int spins = 0; spins < WORKER_SPINS && !has_new(pool, seen) && !atomic_load(&pool->resting); spins++)
            SPIN_HINT();
        if (!has_new(pool, seen)) {
            pthread_mutex_lock(&pool->mutex);
            atomic_fetch_add(&pool->sleeping, 1);
            while (!has_new(pool, seen))
                pthread_cond_wait(&pool->awake, &pool->mutex);
            atomic_fetch_sub(&pool->sleeping, 1);
            pthread_mutex_unlock(&pool->mutex);
        }
        if (atomic_load(&pool->stop))
            return NULL;
        seen = work(pool, self->number);
    }
}

sn_pool *sn_pool_new(int32_t threads)
{
    if (threads < 1 || threads > MAX_THREADS)
        return NULL;
    sn_pool *pool = NULL;
    if (posix_memalign((void **)&pool, 64, sizeof *pool))
        return NULL;
    *pool = (sn_pool){.threads = threads, .width = threads, .owner = getpid()};
    pool->workers = calloc((size_t)threads, sizeof *pool->workers);
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->awake, NULL);
    pthread_cond_init(&pool->widened, NULL);
    for (int32_t number = 1; pool->workers && number < threads; number++) {
        worker *self = &pool->workers[number - 1];
        *self = (worker){.pool = pool, .number = number};
        if (pthread_create(&self->id, NULL, worker_main, self))
            break;
#if defined(__linux__)
        pthread_setname_np(self->id, SN_WORKER_NAME);
#endif
        pool->started++;
    }
    if (pool->started < threads - 1) {
        sn_pool_free(pool);
        return NULL;
    }
    return pool;
}

static void wake_all(sn_pool *pool)
{
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->awake);
    pthread_mutex_unlock(&pool->mutex);
}

void sn_pool_set_width(sn_pool *pool, int32_t width)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->width, width < 1 ? 1 : width > pool->threads ? pool->threads : width);
    pthread_cond_broadcast(&pool->widened);
    pthread_mutex_unlock(&pool->mutex);
}

void sn_pool_free(sn_pool *pool)
{
    if (!pool || pool->owner != getpid())
        return;
    atomic_store(&pool->stop, 1);
    sn_pool_set_width(pool, pool->threads);
    wake_all(pool);
    for (int32_t index = 0; index < pool->started; index++)
        pthread_join(pool->workers[index].id, NULL);
    pthread_cond_destroy(&pool->awake);
    pthread_cond_destroy(&pool->widened);
    pthread_mutex_destroy(&pool->mutex);
    free(pool->workers);
    free(pool);
}

int32_t sn_pool_threads(const sn_pool *pool) { return pool ? pool->threads : 1; }

int32_t sn_pool_width(const sn_pool *pool) { return pool ? atomic_load(&pool->width) : 1; }

void sn_pool_run(sn_pool *pool, sn_job job, void *arg, int32_t parts, int32_t grain)
{
    if (parts <= 0)
        return;
    if (sn_pool_width(pool) == 1 || parts <= grain) {
        job(arg, 0, parts, 0);
        return;
    }
    if (atomic_load(&pool->resting))
        atomic_store(&pool->resting, 0);
    uint64_t number = atomic_load(&pool->next) >> 32;
    atomic_store(&pool->next, number << 32 | CLOSED);
    atomic_store(&pool->job, job);
    atomic_store(&pool->arg, arg);
    atomic_store(&pool->parts, parts);
    atomic_store(&pool->grain, grain);
    atomic_store(&pool->done, 0);
    atomic_store(&pool->next, (number + 1) << 32);
    if (atomic_load(&pool->sleeping))
        wake_all(pool);
    work(pool, 0);
    for (int spins = 0; atomic_load(&pool->done) < parts; spins++) {
        if (spins < CALLER_SPINS)
            SPIN_HINT();
        else
            sched_yield();
    }
}

void sn_pool_rest(sn_pool *pool)
{
    if (pool)
        atomic_store(&pool->resting, 1);
}
