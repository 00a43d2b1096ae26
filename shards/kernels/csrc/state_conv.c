/* Causal convolutions of each channel by itself, and what projections say of decays. */
#include <string.h>

#include "exp.h"
#include "state.h"

enum { LANES = 16, MOST_ROWS = 63 }; /* of a window: MAX_TAPS - 1 */

typedef struct {
    const sn_state *s;
    float *x;
    int64_t ld, at; /* the first of the channels */
    int32_t n;      /* of LANES */
    int silu;
} columns;

/* Input `row` of the run that begins at row `first` of the tile; those before it are in the window. */
static inline sn_v16 input(const columns *c, const float *window, int64_t first, int64_t row)
{
    if (row < 0)
        return sn_load16(window + (c->s->n_taps - 1 + row) * LANES);
    return sn_load_some16(c->x + (first + row) * c->ld + c->at, c->n);
}

/* Backwards, as a row's input is read by those after it. */
static inline void convolve(const columns *c, const float *window, int64_t first, int64_t rows)
{
    const sn_state *s = c->s;
    const float *taps = s->taps + c->at;
    sn_v16 bias = s->conv_bias ? sn_load_some16(s->conv_bias + c->at, c->n) : sn_splat16(0.0f);
    for (int64_t row = rows - 1; row >= 0; row--) {
        sn_v16 sum = sn_splat16(0.0f);
        for (int32_t tap = 0; tap < s->n_taps; tap++)
            sum = sn_fma16(sn_load_some16(taps + (int64_t)tap * s->channels, c->n),
                           input(c, window, first, row - (s->n_taps - 1) + tap), sum);
        sum += bias;
        sn_store_some16(c->x + (first + row) * c->ld + c->at, c->silu ? sn_silu16(sum) : sum, c->n);
    }
}

static void run_columns(const columns *c, const sn_run *run, const sn_stretch *stretches)
{
    const sn_state *s = c->s;
    int64_t window_at = sn_matrices(s) + c->at, first = stretches[run->first].row;
    int32_t before = s->n_taps - 1;
    float window[MOST_ROWS * LANES];
    for (int32_t i = 0; i < before; i++)
        sn_store16(window + i * LANES, run->from ? sn_load_some16(run->from + window_at + (int64_t)i * s->channels, c->n)
                                                 : sn_splat16(0.0f));
    int64_t rows = 0;
    for (int32_t index = run->first; index < run->end; index++) {
        const sn_stretch *part = &stretches[index];
        rows += part->count;
        for (int32_t i = 0; part->keeps && i < before; i++)
            sn_store_some16(part->keeps + window_at + (int64_t)i * s->channels,
                            input(c, window, first, rows - before + i), c->n);
    }
    convolve(c, window, first, rows);
}

void sn_convolve(const sn_state *s, const sn_run *runs, int32_t n_runs, const sn_stretch *stretches, float *x, int64_t ld,
                 int64_t first, int64_t end, int silu)
{
    for (int64_t at = first; at < end; at += LANES) {
        columns c = {s, x, ld, at, end - at < LANES ? (int32_t)(end - at) : LANES, silu};
        for (const sn_run *run = runs; run < runs + n_runs; run++)
            run_columns(&c, run, stretches);
    }
}

static sn_v16 decay_of(const sn_state *s, sn_v16 raw, int64_t at, int32_t n)
{
    sn_v16 rate = sn_load_some16(s->rates + at, n);
    raw = s->decay_factor * raw + sn_load_some16(s->decay_bias + at, n);
    if (s->lower_bound != 0.0f)
        return sn_exp16(s->lower_bound * sn_sigmoid16(rate * raw));
    return sn_exp16(-rate * sn_softplus16(raw));
}

/* Of the steps of heads from `at` on, which lie behind the decays. */
static void step_and_decay(const sn_state *s, float *row, int64_t at, int32_t n)
{
    float *steps = row + s->heads + at;
    sn_v16 raw = s->decay_factor * sn_load_some16(steps, n) + sn_load_some16(s->decay_bias + at, n);
    sn_v16 step = sn_softplus16(raw);
    step = sn_select16(step < s->least_step, sn_splat16(s->least_step), step);
    step = sn_select16(step > s->most_step, sn_splat16(s->most_step), step);
    sn_store_some16(steps, step, n);
    sn_store_some16(row + at, sn_exp16(-sn_load_some16(s->rates + at, n) * step), n);
}

void sn_decays(const sn_state *s, float *row, int64_t first, int64_t end)
{
    int64_t decays = sn_decay_size(s);
    for (int64_t at = first; at < end;) {
        int64_t until = at < decays && decays < end ? decays : end;
        int32_t n = until - at < LANES ? (int32_t)(until - at) : LANES;
        if (s->rule == SN_PLAIN)
            step_and_decay(s, row, at - decays, n);
        else if (at < decays)
            sn_store_some16(row + at, decay_of(s, sn_load_some16(row + at, n), at, n), n);
        else
            sn_store_some16(row + at, s->beta_scale * sn_sigmoid16(sn_load_some16(row + at, n)), n);
        at += n;
    }
}
