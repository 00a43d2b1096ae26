/* A token decays a head's matrix S (key_dim, value_dim), adds to it and reads it: key by key, for as many columns of S
   as vectors hold. Columns never meet, and a column's sums over the keys are two, of the even keys and of the odd: so
   neither threads nor slices change a bit.
   Rows of one page take a slice of S from one slot, hold it in memory of the thread's own, which the cache keeps, and
   leave it in the next slot: the first row reads from the one and the last writes to the other.
   The lengths of q and k are taken out of the sums: they are numbers a row. */
#include <math.h>
#include <string.h>

#include "float_simd.h"
#include "state.h"

enum { SLICE = STATE_VECTORS * LANES, CHAINS = 2 };

static const float UNIT_EPS = 1e-6f;

/* A row of one head. */
typedef struct {
    const float *q, *k, *decay; /* (key_dim); decay: one value, or as many */
    float q_scale, k_scale;     /* of the delta rule: 1 / length, that of q also by sqrt(key_dim) */
    float added;                /* beta, or step */
    float skip;
} token;

/* Some columns of S. */
typedef struct {
    float *at;
    int64_t ld;
} slice;

/* The columns' v becomes o, and S that after the row: `from` and `to` may be the same. */
INLINE void step(const int rule, const int channel, const int vectors, const token *t, int32_t keys, slice from,
                 slice to, float *v)
{
    vfloat w[STATE_VECTORS], sums[CHAINS][STATE_VECTORS] = {{{0}}};
    vfloat decay = splat(t->decay[0]);
    for (int i = 0; i < vectors; i++)
        w[i] = load(v + i * LANES);
    if (rule == SN_DELTA) {
        for (int32_t key = 0; key < keys; key += CHAINS)
            for (int chain = 0; chain < CHAINS && key + chain < keys; chain++) {
                const float *row = from.at + (key + chain) * from.ld;
                vfloat k = splat(channel ? t->k[key + chain] * t->decay[key + chain] : t->k[key + chain]);
                for (int i = 0; i < vectors; i++)
                    sums[chain][i] = fmadd(k, load(row + i * LANES), sums[chain][i]);
            }
        float scale = channel ? t->k_scale : t->k_scale * t->decay[0];
        for (int i = 0; i < vectors; i++) {
            w[i] = t->k_scale * (t->added * (w[i] - scale * (sums[0][i] + sums[1][i])));
            sums[0][i] = sums[1][i] = splat(0.0f);
        }
    } else {
        for (int i = 0; i < vectors; i++)
            w[i] = t->added * w[i];
    }
    for (int32_t key = 0; key < keys; key += CHAINS)
        for (int chain = 0; chain < CHAINS && key + chain < keys; chain++) {
            const float *row = from.at + (key + chain) * from.ld;
            float *out = to.at + (key + chain) * to.ld;
            vfloat k = splat(t->k[key + chain]), q = splat(t->q[key + chain]);
            if (channel)
                decay = splat(t->decay[key + chain]);
            for (int i = 0; i < vectors; i++) {
                vfloat s = fmadd(k, w[i], decay * load(row + i * LANES));
                store(out + i * LANES, s);
                sums[chain][i] = fmadd(q, s, sums[chain][i]);
            }
        }
    for (int i = 0; i < vectors; i++) {
        vfloat o = sums[0][i] + sums[1][i];
        o = rule == SN_DELTA ? t->q_scale * o : fmadd(splat(t->skip), load(v + i * LANES), o);
        store(v + i * LANES, o);
    }
}

#define STEP(name, rule, channel)                                                                      \
    static void name(const token *t, int32_t keys, slice from, slice to, float *v, int32_t vectors)    \
    {                                                                                                  \
        if (vectors == STATE_VECTORS)                                                                  \
            step(rule, channel, STATE_VECTORS, t, keys, from, to, v);                                  \
        else                                                                                           \
            step(rule, channel, 1, t, keys, from, to, v);                                              \
    }
STEP(delta_head, SN_DELTA, 0)
STEP(delta_channel, SN_DELTA, 1)
STEP(plain_head, SN_PLAIN, 0)

static void copy(slice from, slice to, int32_t keys, int32_t columns)
{
    for (int32_t key = 0; key < keys; key++)
        memcpy(to.at + key * to.ld, from.at + key * from.ld, sizeof(float) * (size_t)columns);
}

/* Rows of one run for the columns at `at` of a head's, `n` of them: a whole number of vectors, or fewer than one. */
static void recur_slice(const sn_state *s, const sn_run *run, const sn_stretch *stretches, const token *tokens,
                        int64_t matrix, int64_t at, int32_t n, float *v, int64_t ld, float *scratch)
{
    int32_t keys = s->key_dim, vectors = (n + LANES - 1) / LANES;
    int whole = n % LANES == 0;
    slice own = {scratch, SLICE}, from = own;
    void (*recur)(const token *, int32_t, slice, slice, float *, int32_t) =
        s->rule == SN_PLAIN ? plain_head : s->channel_decay ? delta_channel : delta_head;
    if (!whole || run->from == NULL)
        memset(scratch, 0, sizeof(float) * SLICE * (size_t)keys);
    if (run->from != NULL) {
        slice before = {(float *)run->from + matrix + at, s->value_dim};
        if (whole)
            from = before;
        else
            copy(before, own, keys, n);
    }
    for (int32_t index = run->first; index < run->end; index++) {
        const sn_stretch *part = &stretches[index];
        slice kept = {part->keeps ? part->keeps + matrix + at : NULL, s->value_dim};
        for (int64_t row = part->row; row < part->row + part->count; row++, tokens++) {
            int ends = row + 1 == part->row + part->count && kept.at != NULL;
            slice to = ends && whole ? kept : own;
            if (whole) {
                recur(tokens, keys, from, to, v + row * ld, vectors);
            } else {
                float padded[LANES] = {0};
                memcpy(padded, v + row * ld, sizeof(float) * (size_t)n);
                recur(tokens, keys, from, to, padded, vectors);
                memcpy(v + row * ld, padded, sizeof(float) * (size_t)n);
            }
            if (ends && !whole)
                copy(own, kept, keys, n);
            from = to;
        }
    }
}

int64_t sn_recur_scratch(const sn_state *s) { return (int64_t)s->key_dim * SLICE; }

static float one_over_length(const float *x, int32_t n) { return 1.0f / sqrtf(sn_sum_of_squares(x, n, 0.0f) + UNIT_EPS); }

void sn_recur(const sn_state *s, const sn_run *run, const sn_stretch *stretches, int32_t head, float *qkv, int64_t ld,
              const float *decays, int64_t decays_ld, float *scratch)
{
    int64_t key_size = sn_key_size(s), first = stretches[run->first].row;
    int64_t rows = stretches[run->end - 1].row + stretches[run->end - 1].count - first;
    int32_t key_head = s->tiled ? head % s->key_heads : head / (s->heads / s->key_heads);
    float per_dim = 1.0f / sqrtf((float)s->key_dim), skip = s->skip ? s->skip[head] : 0.0f;
    token tokens[SN_BLOCK_ROWS];
    for (int64_t i = 0; i < rows; i++) {
        const float *q = qkv + (first + i) * ld + (int64_t)key_head * s->key_dim, *k = q + key_size;
        const float *decay = decays + (first + i) * decays_ld;
        tokens[i] = (token){q, k, decay + (int64_t)head * (s->channel_decay ? s->key_dim : 1), 1.0f, 1.0f,
                            decay[sn_decay_size(s) + head], skip};
        if (s->rule == SN_DELTA) {
            tokens[i].q_scale = one_over_length(q, s->key_dim) * per_dim;
            tokens[i].k_scale = one_over_length(k, s->key_dim);
        }
    }
    float *v = qkv + 2 * key_size + (int64_t)head * s->value_dim;
    for (int32_t at = 0, n; at < s->value_dim; at += n) {
        int32_t left = s->value_dim - at;
        n = left >= SLICE ? SLICE : left >= LANES ? LANES : left;
        recur_slice(s, run, stretches, tokens, (int64_t)head * s->key_dim * s->value_dim, at, n, v + at, ld, scratch);
    }
}
