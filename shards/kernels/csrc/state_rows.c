/* What becomes of the values of rows by themselves: convolutions of each channel, decays, gates. */
#include <string.h>

#include "float_simd.h"
#include "state.h"

enum { MOST_ROWS = 63 }; /* of a window: MAX_TAPS - 1 */

typedef struct {
    const sn_state *s;
    float *x;
    int64_t ld, at; /* the first of the channels */
    int64_t n;      /* of LANES */
    int silu;
} columns;

/* Input `row` of the run that begins at row `first` of the tile; those before it are in the window. */
INLINE vfloat input(const columns *c, const float *window, int64_t first, int64_t row, int64_t n)
{
    if (row < 0)
        return load(window + (c->s->n_taps - 1 + row) * LANES);
    return load_some(c->x + (first + row) * c->ld + c->at, n);
}

/* Backwards, as a row's input is read by those after it. n: c->n, a constant where it is LANES; n_taps likewise. */
INLINE void convolve(const columns *c, const float *window, int64_t first, int64_t rows, const int64_t n,
                     const int32_t n_taps)
{
    const sn_state *s = c->s;
    const float *taps = s->taps + c->at;
    vfloat bias = s->conv_bias ? load_some(s->conv_bias + c->at, n) : splat(0.0f);
    for (int64_t row = rows - 1; row >= 0; row--) {
        vfloat sum = splat(0.0f);
        for (int32_t tap = 0; tap < n_taps; tap++)
            sum = fmadd(load_some(taps + (int64_t)tap * s->channels, n),
                        input(c, window, first, row - (n_taps - 1) + tap, n), sum);
        sum += bias;
        store_some(c->x + (first + row) * c->ld + c->at, c->silu ? sum * sigmoid_of(sum) : sum, n);
    }
}

static void run_columns(const columns *c, const sn_run *run, const sn_stretch *stretches)
{
    const sn_state *s = c->s;
    int64_t window_at = sn_matrices(s) + c->at, first = stretches[run->first].row, rows = 0;
    int32_t before = s->n_taps - 1;
    float window[MOST_ROWS * LANES];
    for (int32_t i = 0; i < before; i++)
        store(window + i * LANES,
              run->from ? load_some(run->from + window_at + (int64_t)i * s->channels, c->n) : splat(0.0f));
    for (int32_t index = run->first; index < run->end; index++) {
        const sn_stretch *part = &stretches[index];
        rows += part->count;
        for (int32_t i = 0; part->keeps && i < before; i++)
            store_some(part->keeps + window_at + (int64_t)i * s->channels,
                       input(c, window, first, rows - before + i, c->n), c->n);
    }
    if (c->n == LANES && s->n_taps == 4)
        convolve(c, window, first, rows, LANES, 4);
    else
        convolve(c, window, first, rows, c->n, s->n_taps);
}

void sn_convolve(const sn_state *s, const sn_run *runs, int32_t n_runs, const sn_stretch *stretches, float *x, int64_t ld,
                 int64_t first, int64_t end, int silu)
{
    for (int64_t at = first; at < end; at += LANES) {
        columns c = {s, x, ld, at, end - at < LANES ? end - at : LANES, silu};
        for (const sn_run *run = runs; run < runs + n_runs; run++)
            run_columns(&c, run, stretches);
    }
}

static vfloat decay_of(const sn_state *s, vfloat raw, int64_t at, int64_t n)
{
    vfloat rate = load_some(s->rates + at, n);
    raw = s->decay_factor * raw + load_some(s->decay_bias + at, n);
    return exp_of(-rate * softplus_of(raw));
}

/* Of the steps of heads from `at` on, which lie behind the decays. */
static void step_and_decay(const sn_state *s, float *row, int64_t at, int64_t n)
{
    float *steps = row + s->heads + at;
    vfloat step = softplus_of(s->decay_factor * load_some(steps, n) + load_some(s->decay_bias + at, n));
    step = pick(step < splat(s->least_step), splat(s->least_step), step);
    step = pick(step > splat(s->most_step), splat(s->most_step), step);
    store_some(steps, step, n);
    store_some(row + at, exp_of(-load_some(s->rates + at, n) * step), n);
}

void sn_decays(const sn_state *s, float *row, int64_t first, int64_t end)
{
    int64_t decays = sn_decay_size(s);
    for (int64_t at = first; at < end;) {
        int64_t until = at < decays && decays < end ? decays : end, n = until - at < LANES ? until - at : LANES;
        if (s->rule == SN_PLAIN)
            step_and_decay(s, row, at - decays, n);
        else if (at < decays)
            store_some(row + at, decay_of(s, load_some(row + at, n), at, n), n);
        else
            store_some(row + at, s->beta_scale * sigmoid_of(load_some(row + at, n)), n);
        at += n;
    }
}

void sn_gate(const sn_state *s, float *o, const float *z, int64_t at, int32_t n)
{
    if (!s->gate_first)
        sn_norm_row(&s->norm, o, o, n, at);
    for (int32_t i = 0; i < n; i += LANES) {
        vfloat gate = load_some(z + i, n - i), factor = sigmoid_of(gate);
        store_some(o + i, load_some(o + i, n - i) * (s->gate_silu ? gate * factor : factor), n - i);
    }
    if (s->gate_first)
        sn_norm_row(&s->norm, o, o, n, at);
}
