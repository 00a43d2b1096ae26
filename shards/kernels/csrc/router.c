/* One row's choice of experts. All sums go in the order of the experts. */
#include <math.h>
#include <string.h>

#include "exp.h"
#include "experts.h"

/* What sn_exp16 needs: whole vectors. */
enum { LANES = 16, PADDED = SN_MOST_EXPERTS + LANES };

/* A NaN loses against every number, so that the choice never depends on how NaNs compare. */
static int beats(float a, float b) { return a > b || (isnan(b) && !isnan(a)); }

/* out = exp(x - the largest x), and returns their sum; NaN where an x is, or none is finite. Both have PADDED room. */
static float exponentials(float *x, int32_t n, float *out)
{
    float largest = x[0], total = 0.0f;
    int has_nan = 0;
    for (int32_t i = 0; i < n; i++) {
        has_nan |= isnan(x[i]);
        largest = x[i] > largest ? x[i] : largest;
    }
    for (int32_t i = n; i % LANES; i++)
        x[i] = 0.0f;
    for (int32_t i = 0; i < n; i += LANES)
        sn_store16(out + i, sn_exp16(sn_load16(x + i) - largest));
    for (int32_t i = 0; i < n; i++)
        total += out[i];
    return has_nan || isinf(largest) ? NAN : total;
}

static void softmax(float *x, int32_t n, float *out)
{
    float total = exponentials(x, n, out);
    for (int32_t i = 0; i < n; i++)
        out[i] /= total;
}

/* Adds number `index` to the `held` best, the best first, of which there are at most `most`. Returns how many there
   are. Of equal keys the one that came first stays before. */
static int32_t add_to_best(const float *keys, int32_t index, int32_t *best, int32_t held, int32_t most)
{
    int32_t at = held;
    while (at > 0 && beats(keys[index], keys[best[at - 1]]))
        at--;
    if (at == most)
        return held;
    memmove(best + at + 1, best + at, sizeof *best * (size_t)((held < most ? held : most - 1) - at));
    best[at] = index;
    return held < most ? held + 1 : most;
}

static float group_key(const sn_router *router, const float *keys, int32_t first, int32_t size)
{
    int32_t best[2], held = 0;
    for (int32_t i = first; i < first + size; i++)
        held = add_to_best(keys, i, best, held, router->top2 ? 2 : 1);
    return held == 2 ? keys[best[0]] + keys[best[1]] : keys[best[0]];
}

/* The `used` experts of the largest keys, of those groups that take part: marks them. */
static void choose(const sn_router *router, int32_t count, int32_t used, const float *keys, uint8_t *chosen)
{
    int32_t best[SN_MOST_EXPERTS], held = 0, size = count / router->groups;
    float group_keys[SN_MOST_EXPERTS];
    uint8_t takes_part[SN_MOST_EXPERTS] = {0};
    for (int32_t group = 0; group < router->groups; group++) {
        group_keys[group] = router->used_groups < router->groups ? group_key(router, keys, group * size, size) : 0.0f;
        held = add_to_best(group_keys, group, best, held, router->used_groups);
    }
    for (int32_t i = 0; i < held; i++)
        takes_part[best[i]] = 1;
    held = 0;
    for (int32_t i = 0; i < count; i++)
        if (takes_part[i / size])
            held = add_to_best(keys, i, best, held, used);
    memset(chosen, 0, (size_t)count);
    for (int32_t i = 0; i < held; i++)
        chosen[best[i]] = 1;
}

/* Phi-3.5-MoE's, of two experts: each the best of what is left, with its share of a softmax over those that are not
   much worse. Marks both, and puts their shares into `shares`. */
static void sparsemixer(const sn_router *router, int32_t count, const float *scores, uint8_t *chosen, float *shares)
{
    float near[PADDED], powers[PADDED];
    memset(chosen, 0, (size_t)count);
    for (int round = 0; round < 2; round++) {
        int32_t best = -1;
        for (int32_t i = 0; i < count; i++)
            if (!chosen[i] && (best < 0 || beats(scores[i], scores[best])))
                best = i;
        float top = scores[best];
        for (int32_t i = 0; i < count; i++) {
            float size = fabsf(scores[i]), far = (top - scores[i]) / (size > top ? size : top);
            near[i] = chosen[i] || far > 2.0f * router->jitter ? -INFINITY : scores[i];
        }
        shares[best] = 1.0f / exponentials(near, count, powers);
        chosen[best] = 1;
    }
}

void sn_route(const sn_router *router, int32_t count, int32_t used, float *scores, int32_t *experts, float *weights)
{
    float logits[PADDED], keys[PADDED];
    uint8_t chosen[SN_MOST_EXPERTS];
    memcpy(logits, scores, sizeof(float) * (size_t)count);
    if (router->scores == SN_SPARSEMIXER) {
        sparsemixer(router, count, logits, chosen, scores);
    } else {
        if (router->scores == SN_SOFTMAX) {
            softmax(logits, count, keys);
            memcpy(scores, keys, sizeof(float) * (size_t)count);
        } else if (router->scores == SN_SIGMOID) {
            for (int32_t i = 0; i < count; i++)
                scores[i] = isnan(logits[i]) ? NAN : sn_sigmoid(logits[i]);
        }
        for (int32_t i = 0; i < count; i++)
            keys[i] = router->correction ? scores[i] + router->correction[i] : scores[i];
        choose(router, count, used, keys, chosen);
    }
    int32_t held = 0;
    for (int32_t i = 0; i < count; i++)
        if (chosen[i]) {
            experts[held] = i;
            logits[held++] = scores[i];
        }
    if (router->scores == SN_SOFTMAX_OF_USED)
        softmax(logits, used, keys);
    else
        memcpy(keys, logits, sizeof(float) * (size_t)used);
    float divisor = 1.0f;
    if (router->renormalise) {
        divisor = 0.0f;
        for (int32_t i = 0; i < used; i++)
            divisor += keys[i];
        divisor += router->sum_floor;
    }
    for (int32_t i = 0; i < used; i++) {
        weights[i] = keys[i] / divisor * router->scaling;
        if (router->expert_scale)
            weights[i] *= router->expert_scale[experts[i]];
    }
}
