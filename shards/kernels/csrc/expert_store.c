#define _GNU_SOURCE /* for O_DIRECT and pthread_setname_np */
#include "expert_store.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "pool.h"

enum { ABSENT, COMING, HELD };

enum { ALIGNMENT = 64, MAX_READERS = 16 };

/* Of what a disk reads at a time: reads past the system's cache begin and end at multiples of it. */
enum { SECTOR = 4096 };

/* Heats are scaled down before they reach what a double holds. */
#define MOST_HEAT 1e200

typedef struct {
    double heat;
    int32_t block, number; /* which expert it is */
    uint8_t state, wanted, taken, expected;
    uint8_t parts, broken; /* of a COMING one: parts that are not read yet; whether one could not be read */
} entry;

typedef struct {
    sn_expert_store *store;
    pthread_t id;
    uint8_t *staging;
} reader;

typedef struct {
    int64_t *items; /* numbers of entries */
    int32_t n;
} list;

struct sn_expert_store {
    pthread_mutex_t mutex;
    pthread_cond_t work, arrived;
    const sn_stored_experts *blocks;
    int64_t *firsts; /* entry of a block's first expert */
    entry *entries;
    int64_t n_entries;
    int64_t *in_slot; /* entry that a slot holds or gets, or -1 */
    uint8_t *slots;
    int64_t slot_bytes;
    int32_t n_slots, n_blocks;
    list wanted, expected;
    int64_t opened; /* a COMING entry of which parts are still to be handed out, or -1 */
    int32_t part;   /* the first of them: 0, 1 and 2 are gate, up and down */
    int32_t opened_slot;
    double one, growth; /* what a want adds to the heat now, and what that grows by with each */
    struct timespec *changed; /* of each entry's three parts' files, when the store was made */
    int32_t failure, stop, started;
    sn_store_state state;
    pid_t owner; /* threads do not survive a fork */
    reader readers[MAX_READERS];
};

static int64_t aligned(int64_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

int64_t sn_store_slot_bytes(const sn_mlp *mlp)
{
    return aligned(sn_packed_bytes(&mlp->gate_up)) + aligned(sn_packed_bytes(&mlp->down));
}

static int64_t extent(const sn_file_rows *rows)
{
    return rows->rows ? (rows->rows - 1) * rows->stride + rows->row_bytes : 0;
}

static struct timespec changed_at(int fd)
{
    struct stat status;
    if (fstat(fd, &status))
        return (struct timespec){0, 0};
#if defined(__APPLE__)
    return status.st_mtimespec;
#else
    return status.st_mtim;
#endif
}

/* Lets reads of this file pass the system's cache, where it can do that, or go through it. Through it, reading takes more
   of the processor than the products of what is read. */
static void pass_cache(int fd, int pass)
{
#if defined(O_DIRECT)
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0)
        fcntl(fd, F_SETFL, pass ? flags | O_DIRECT : flags & ~O_DIRECT);
#elif defined(F_NOCACHE)
    fcntl(fd, F_NOCACHE, pass);
#else
    (void)fd, (void)pass;
#endif
}

/* Puts the rows, from `*at` on, into `to`. Returns 0, or a failure. */
static int32_t read_rows(const sn_file_rows *rows, struct timespec opened, uint8_t *to, uint8_t **at)
{
    int64_t start = rows->offset / SECTOR * SECTOR, needed = rows->offset + extent(rows) - start;
    int64_t wanted = (needed + SECTOR - 1) / SECTOR * SECTOR;
    int refused = 0;
    for (int64_t done = 0; done < needed;) {
        ssize_t got = pread(rows->fd, to + done, (size_t)(wanted - done), (off_t)(start + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EINVAL && !refused++) { /* some file systems take the flag, but not the reads */
            pass_cache(rows->fd, 0);
            continue;
        }
        if (got < 0)
            return SN_STORE_READ | errno << 8;
        int64_t whole = done + got >= needed ? got : got / SECTOR * SECTOR;
        if (whole == 0)
            return SN_STORE_SHORT;
        done += whole;
    }
    *at = to + (rows->offset - start);
    struct timespec now = changed_at(rows->fd);
    int same = now.tv_sec == opened.tv_sec && now.tv_nsec == opened.tv_nsec;
    return same || rows->may_change ? 0 : SN_STORE_CHANGED;
}

static sn_mlp *mlp_of(const sn_expert_store *store, const entry *e) { return &store->blocks[e->block].mlps[e->number]; }

static const sn_file_mlp *files_of(const sn_expert_store *store, const entry *e)
{
    return &store->blocks[e->block].files[e->number];
}

/* Reads and packs a part of an expert. Returns 0, or a failure. */
static int32_t load(const sn_expert_store *store, int64_t index, int32_t part, uint8_t *staging, uint8_t *slot)
{
    const entry *e = &store->entries[index];
    const sn_mlp *mlp = mlp_of(store, e);
    const sn_file_mlp *files = files_of(store, e);
    const sn_file_rows *rows[] = {&files->gate, &files->up, &files->down};
    uint8_t *from;
    int32_t failure = read_rows(rows[part], store->changed[3 * index + part], staging, &from);
    if (failure)
        return failure;
    if (part == 2)
        sn_pack_file(&mlp->down, 0, rows[part]->rows, from, rows[part]->stride, NULL,
                     slot + aligned(sn_packed_bytes(&mlp->gate_up)));
    else
        sn_pack_file(&mlp->gate_up, part == 1 ? files->gate.rows : 0, rows[part]->rows, from, rows[part]->stride, NULL,
                     slot);
    return 0;
}

static void point_at(const sn_expert_store *store, const entry *e, uint8_t *slot)
{
    sn_mlp *mlp = mlp_of(store, e);
    mlp->gate_up.weights = slot;
    mlp->down.weights = slot ? slot + aligned(sn_packed_bytes(&mlp->gate_up)) : NULL;
}

/* The first of the wanted experts, or of the expected ones, that has to be read; -1: there is none. */
static int64_t first_absent(const sn_expert_store *store, int wanted)
{
    const list *among = wanted ? &store->wanted : &store->expected;
    for (int32_t i = 0; i < among->n; i++) {
        const entry *e = &store->entries[among->items[i]];
        if (e->state == ABSENT && (e->wanted || !wanted))
            return among->items[i];
    }
    return -1;
}

/* A slot that is empty, or else that of the coldest expert which nobody needs; -1: there is none. */
static int32_t find_slot(const sn_expert_store *store, int for_wanted)
{
    int32_t found = -1;
    double coldest = 0.0;
    for (int32_t slot = 0; slot < store->n_slots; slot++) {
        if (store->in_slot[slot] < 0)
            return slot;
        const entry *e = &store->entries[store->in_slot[slot]];
        if (e->state != HELD || e->wanted || (e->expected && !for_wanted))
            continue;
        double heat = e->expected ? e->heat + MOST_HEAT : e->heat; /* what is expected goes last */
        if (found < 0 || heat < coldest) {
            found = slot;
            coldest = heat;
        }
    }
    return found;
}

/* Chooses the expert to read next, and a slot for it. Returns 0 where there is none, or nowhere to put it. */
static int open_next(sn_expert_store *store)
{
    int64_t index = first_absent(store, 1);
    int for_wanted = index >= 0;
    if (!for_wanted)
        index = first_absent(store, 0);
    int32_t slot = index < 0 || store->failure ? -1 : find_slot(store, for_wanted);
    if (slot < 0)
        return 0;
    if (store->in_slot[slot] >= 0) {
        entry *old = &store->entries[store->in_slot[slot]];
        old->state = ABSENT;
        point_at(store, old, NULL);
    }
    entry *e = &store->entries[index];
    store->opened = store->in_slot[slot] = index;
    store->opened_slot = slot;
    store->part = files_of(store, e)->gate.rows ? 0 : 1;
    e->state = COMING;
    e->parts = (uint8_t)(3 - store->part);
    e->broken = 0;
    return 1;
}

/* All parts of the expert in `slot` were read, or tried to. */
static void close_slot(sn_expert_store *store, entry *e, int32_t slot)
{
    if (e->broken) {
        store->in_slot[slot] = -1;
        e->state = ABSENT;
        return;
    }
    const sn_file_mlp *files = files_of(store, e);
    point_at(store, e, store->slots + slot * store->slot_bytes);
    e->state = HELD;
    store->state.read++;
    store->state.read_bytes += extent(&files->gate) + extent(&files->up) + extent(&files->down);
}

/* Reads a part of an expert, without the lock while it does: one expert's parts are read at the same time. Returns 0
   where there is nothing to read, or nowhere to put it. */
static int read_one(reader *self)
{
    sn_expert_store *store = self->store;
    if (store->opened < 0 && !open_next(store))
        return 0;
    int64_t index = store->opened;
    int32_t part = store->part++, slot = store->opened_slot;
    if (store->part == 3)
        store->opened = -1;
    pthread_mutex_unlock(&store->mutex);
    int32_t failure = load(store, index, part, self->staging, store->slots + slot * store->slot_bytes);
    pthread_mutex_lock(&store->mutex);
    entry *e = &store->entries[index];
    if (failure) {
        store->failure = failure;
        e->broken = 1;
    }
    if (--e->parts == 0)
        close_slot(store, e, slot);
    if (e->parts == 0 || failure)
        pthread_cond_signal(&store->arrived);
    return 1;
}

static void *reader_main(void *start)
{
    reader *self = start;
    sn_expert_store *store = self->store;
    pthread_mutex_lock(&store->mutex);
    while (!store->stop)
        if (!read_one(self))
            pthread_cond_wait(&store->work, &store->mutex);
    pthread_mutex_unlock(&store->mutex);
    return NULL;
}

static void cool(sn_expert_store *store)
{
    for (int64_t i = 0; i < store->n_entries; i++)
        store->entries[i].heat /= store->one;
    store->one = 1.0;
}

static void expect_nothing(sn_expert_store *store)
{
    for (int32_t i = 0; i < store->expected.n; i++)
        store->entries[store->expected.items[i]].expected = 0;
    store->expected.n = 0;
}

void sn_store_want(sn_expert_store *store, int32_t number, const int32_t *wanted, int32_t n)
{
    pthread_mutex_lock(&store->mutex);
    store->one *= store->growth;
    if (store->one > MOST_HEAT / 1e10)
        cool(store);
    expect_nothing(store); /* it came true, or did not */
    store->wanted.n = n;
    for (int32_t i = 0; i < n; i++) {
        entry *e = &store->entries[store->firsts[number] + wanted[i]];
        store->wanted.items[i] = store->firsts[number] + wanted[i];
        e->heat += store->one;
        e->wanted = 1;
        store->state.held += e->state == HELD;
        store->state.late += e->state == COMING;
    }
    store->state.wanted += n;
    if (first_absent(store, 1) >= 0)
        pthread_cond_broadcast(&store->work);
    pthread_mutex_unlock(&store->mutex);
}

/* Nobody needs these any more: those that were taken, or all. */
static int32_t let_go(sn_expert_store *store, int all)
{
    int32_t left = 0;
    for (int32_t i = 0; i < store->wanted.n; i++) {
        entry *e = &store->entries[store->wanted.items[i]];
        if (e->taken || all)
            e->taken = e->wanted = 0;
        left += e->wanted;
    }
    return left;
}

static int32_t take(sn_expert_store *store, int32_t *places)
{
    int32_t taken = 0;
    for (int32_t i = 0; i < store->wanted.n; i++) {
        entry *e = &store->entries[store->wanted.items[i]];
        if (e->wanted && e->state == HELD) {
            e->taken = 1;
            places[taken++] = i;
        }
    }
    return taken;
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * (int64_t)1000000000 + now.tv_nsec;
}

int32_t sn_store_take(sn_expert_store *store, int32_t *places)
{
    int32_t taken = 0;
    pthread_mutex_lock(&store->mutex);
    int32_t left = let_go(store, 0);
    if (left && first_absent(store, 1) >= 0)
        pthread_cond_broadcast(&store->work); /* there may be room for it now */
    if (left && !(taken = take(store, places))) {
        int64_t since = now_ns();
        while (!store->failure && !(taken = take(store, places)))
            pthread_cond_wait(&store->arrived, &store->mutex);
        store->state.waited_ns += now_ns() - since;
    }
    if (!taken) {
        let_go(store, 1);
        store->wanted.n = 0;
    }
    pthread_mutex_unlock(&store->mutex);
    return taken || !left ? taken : -1;
}

void sn_store_expect(sn_expert_store *store, int32_t number, const int32_t *experts, int32_t n)
{
    pthread_mutex_lock(&store->mutex);
    expect_nothing(store);
    store->expected.n = n;
    for (int32_t i = 0; i < n; i++) {
        store->expected.items[i] = store->firsts[number] + experts[i];
        store->entries[store->expected.items[i]].expected = 1;
    }
    if (first_absent(store, 0) >= 0)
        pthread_cond_broadcast(&store->work);
    pthread_mutex_unlock(&store->mutex);
}

int32_t sn_store_failure(sn_expert_store *store)
{
    pthread_mutex_lock(&store->mutex);
    int32_t failure = store->failure;
    store->failure = 0;
    pthread_mutex_unlock(&store->mutex);
    return failure;
}

void sn_store_look(sn_expert_store *store, sn_store_state *state)
{
    pthread_mutex_lock(&store->mutex);
    *state = store->state;
    pthread_mutex_unlock(&store->mutex);
}

static void fill(sn_expert_store *store)
{
    int64_t index = 0;
    for (int32_t block = 0; block < store->n_blocks; block++) {
        store->firsts[block] = index;
        for (int32_t number = 0; number < store->blocks[block].count; number++, index++) {
            const sn_file_mlp *files = &store->blocks[block].files[number];
            const int fds[] = {files->gate.rows ? files->gate.fd : files->up.fd, files->up.fd, files->down.fd};
            store->entries[index] = (entry){.block = block, .number = number};
            for (int part = 0; part < 3; part++) {
                store->changed[3 * index + part] = changed_at(fds[part]);
                pass_cache(fds[part], 1);
            }
        }
    }
    for (int32_t slot = 0; slot < store->n_slots; slot++)
        store->in_slot[slot] = -1;
}

static int64_t largest_extent(const sn_stored_experts *blocks, int32_t n_blocks)
{
    int64_t most = 1;
    for (int32_t block = 0; block < n_blocks; block++)
        for (int32_t number = 0; number < blocks[block].count; number++) {
            const sn_file_mlp *files = &blocks[block].files[number];
            const sn_file_rows *parts[] = {&files->gate, &files->up, &files->down};
            for (int part = 0; part < 3; part++)
                most = extent(parts[part]) > most ? extent(parts[part]) : most;
        }
    return most;
}

sn_expert_store *sn_store_new(const sn_stored_experts *blocks, int32_t n_blocks, void *slots, int64_t slot_bytes,
                              int32_t n_slots, int32_t readers, double half_life)
{
    sn_expert_store *store = calloc(1, sizeof *store);
    if (!store || readers < 1 || readers > MAX_READERS || n_slots < 1) {
        free(store);
        return NULL;
    }
    store->blocks = blocks;
    store->n_blocks = n_blocks;
    store->slots = slots;
    store->slot_bytes = slot_bytes;
    store->n_slots = n_slots;
    store->one = 1.0;
    store->opened = -1;
    store->owner = getpid();
    int32_t most = 1;
    for (int32_t block = 0; block < n_blocks; block++) {
        store->n_entries += blocks[block].count;
        most = blocks[block].count > most ? blocks[block].count : most;
    }
    store->growth = __builtin_exp2(1.0 / (half_life * n_blocks));
    store->firsts = calloc((size_t)n_blocks, sizeof *store->firsts);
    store->entries = calloc((size_t)store->n_entries, sizeof *store->entries);
    store->changed = calloc((size_t)store->n_entries * 3, sizeof *store->changed);
    store->in_slot = calloc((size_t)n_slots, sizeof *store->in_slot);
    store->wanted.items = calloc((size_t)most, sizeof *store->wanted.items);
    store->expected.items = calloc((size_t)most, sizeof *store->expected.items);
    pthread_mutex_init(&store->mutex, NULL);
    pthread_cond_init(&store->work, NULL);
    pthread_cond_init(&store->arrived, NULL);
    int is_whole = store->firsts && store->entries && store->changed && store->in_slot && store->wanted.items &&
                   store->expected.items;
    if (is_whole)
        fill(store);
    int64_t staging = (largest_extent(blocks, n_blocks) / SECTOR + 3) * SECTOR;
    for (int32_t i = 0; is_whole && i < readers; i++) {
        reader *self = &store->readers[i];
        *self = (reader){.store = store};
        void *memory = NULL;
        self->staging = posix_memalign(&memory, SECTOR, (size_t)staging) ? NULL : memory;
        if (!self->staging || pthread_create(&self->id, NULL, reader_main, self)) {
            free(self->staging);
            break;
        }
#if defined(__linux__)
        pthread_setname_np(self->id, "swarm-reader");
#endif
        store->started++;
    }
    if (store->started < readers) {
        sn_store_free(store);
        return NULL;
    }
    return store;
}

void sn_store_free(sn_expert_store *store)
{
    if (!store || store->owner != getpid())
        return;
    pthread_mutex_lock(&store->mutex);
    store->stop = 1;
    pthread_cond_broadcast(&store->work);
    pthread_mutex_unlock(&store->mutex);
    for (int32_t i = 0; i < store->started; i++) {
        pthread_join(store->readers[i].id, NULL);
        free(store->readers[i].staging);
    }
    pthread_cond_destroy(&store->work);
    pthread_cond_destroy(&store->arrived);
    pthread_mutex_destroy(&store->mutex);
    free(store->firsts);
    free(store->entries);
    free(store->changed);
    free(store->in_slot);
    free(store->wanted.items);
    free(store->expected.items);
    free(store);
}
