/* Mixers that keep a state of fixed size a session: what RecurrenceConfig and ShortConvConfig of
   shards/formats/blocks/state.py say.

   A slot holds, all float32, the matrices (heads, key_dim, value_dim), then the window: the last taps - 1 inputs of the
   convolution (rows, channels), the oldest first. Each value's operations and their order depend on its own session's
   rows alone: not on the batch, the threads, or where pages and tiles end. */
#ifndef SN_STATE_H
#define SN_STATE_H

#include <stdint.h>

#include "rows.h"
#include "sn.h"

enum { SN_SHORT_CONV = 0, SN_DELTA = 1, SN_PLAIN = 2 };

/* The linears. The first five read the block's input. */
enum { SN_IN, SN_DECAY, SN_BETA, SN_GATE_A, SN_DECAY_A, SN_GATE_B, SN_DECAY_B, SN_OUT, SN_STATE_LINEARS };

typedef struct sn_state {
    sn_linear linears[SN_STATE_LINEARS]; /* 0 rows: none. SN_IN: to q, k, v and, unless it has a rank, the gate; or to
                                            b, c and v. SN_DECAY: with SN_BETA's rows below it, if the rule is SN_DELTA */
    const float *taps;                   /* (n_taps, channels) */
    const float *conv_bias;              /* (channels) or NULL */
    const float *factors;                /* of q, k, v and the gate (channels + inner), or NULL */
    const float *rates;                  /* exp(a_log) of each value of the decay */
    const float *decay_bias;             /* likewise */
    const float *skip;                   /* (heads) or NULL */
    sn_norm norm;                        /* of all heads' values */
    int32_t rule;                        /* SN_SHORT_CONV, which has only the taps, or SN_DELTA or SN_PLAIN */
    int32_t n_taps, channels;
    int32_t heads, key_heads, key_dim, value_dim;
    int32_t tiled;         /* value head h has key head h % key_heads */
    int32_t channel_decay; /* a decay a channel of the key, else one a head */
    int32_t norm_groups, gate_first;
    int32_t gate_silu; /* else sigmoid */
    float decay_factor, beta_scale, least_step, most_step;
} sn_state;

typedef struct sn_states {
    float *data; /* (n_slots, slot_floats) */
    int64_t slot_floats, n_slots;
} sn_states;

/* Rows of one session within one page, counted in the tile. */
typedef struct sn_stretch {
    int64_t row, count;
    float *keeps; /* the state that becomes that after them; NULL: none does */
} sn_stretch;

/* Rows of one session in the tile: stretches `first` to `end`. */
typedef struct sn_run {
    const float *from; /* the state before them; NULL: zeros */
    int32_t first, end;
} sn_run;

static inline int64_t sn_inner(const sn_state *s) { return (int64_t)s->heads * s->value_dim; }

static inline int64_t sn_key_size(const sn_state *s) { return (int64_t)s->key_heads * s->key_dim; }

static inline int64_t sn_decay_size(const sn_state *s)
{
    return (int64_t)s->heads * (s->channel_decay ? s->key_dim : 1);
}

/* Values of all matrices. */
static inline int64_t sn_matrices(const sn_state *s) { return (int64_t)s->heads * s->key_dim * s->value_dim; }

static inline int64_t sn_state_floats(const sn_state *s)
{
    return sn_matrices(s) + (int64_t)(s->n_taps - 1) * s->channels;
}

/* Channels first to end of the convolution's inputs x, `ld` floats a row, become its outputs; and their part of the
   windows is kept. With `silu`, that of the outputs. */
void sn_convolve(const sn_state *s, const sn_run *runs, int32_t n_runs, const sn_stretch *stretches, float *x, int64_t ld,
                 int64_t first, int64_t end, int silu);

/* What a row's decay_proj and beta_proj give becomes its decays (decay_size), and behind them beta or step (heads):
   values first to end of these. Of SN_PLAIN, the steps of which give the decays too. */
void sn_decays(const sn_state *s, float *row, int64_t first, int64_t end);

/* n values o of all heads', from number `at` on, normed and multiplied by their gates, made of z. */
void sn_gate(const sn_state *s, float *o, const float *z, int64_t at, int32_t n);

/* Floats of scratch memory for sn_recur. */
int64_t sn_recur_scratch(const sn_state *s);

/* A head's v, in the rows of the run, becomes o. qkv: q, k and v of all heads, `ld` floats a row; decays: what
   sn_decays has made, `decays_ld` floats a row. */
void sn_recur(const sn_state *s, const sn_run *run, const sn_stretch *stretches, int32_t head, float *qkv, int64_t ld,
              const float *decays, int64_t decays_ld, float *scratch);

#endif
