#include "activation.h"

#include <string.h>

#include "exp.h"

static inline sn_v16 sigmoid16(sn_v16 x) { return 1.0f / (1.0f + sn_exp16(-x)); }

static inline sn_v16 silu16(sn_v16 x) { return x / (1.0f + sn_exp16(-x)); }

/* erfc(|x| / sqrt 2) / 2 = exp(-x^2 / 2) t P(t) with t = 1 / (1 + 0.4 |x| / sqrt 2): our fit of P, the relative error of
   all of it below 5e-7 where |x| < 3. For negative x that is the normal distribution itself, so that small results are
   as exact as large ones. */
static inline sn_v16 gelu16(sn_v16 x)
{
    static const float P[] = {-2.921498567e-02f, 1.404460371e-01f,  -2.355257869e-01f, 1.375596225e-01f,
                              -4.689385742e-02f, 8.391579986e-02f,  1.190084666e-01f,  1.717392504e-01f,
                              2.076137364e-01f,  2.256758660e-01f,  2.256758362e-01f};
    sn_v16 size = sn_select16(x < 0.0f, -x, x);
    sn_v16 t = 1.0f / sn_fma16(size, sn_splat16(0.282842712474619f), sn_splat16(1.0f));
    sn_v16 p = sn_splat16(P[0]);
    for (int i = 1; i < 11; i++)
        p = sn_fma16(p, t, sn_splat16(P[i]));
    sn_v16 tail = 0.5f * (sn_exp16(-0.5f * x * x) * t * p);
    return x * sn_select16(x < 0.0f, tail, 1.0f - tail);
}

/* x (1 + tanh(u)) / 2 is x / (1 + exp(-2 u)); u = sqrt(2 / pi) (x + 0.044715 x^3). */
static inline sn_v16 gelu_tanh16(sn_v16 x)
{
    sn_v16 cubic = sn_fma16(x * x, sn_splat16(0.044715f), sn_splat16(1.0f));
    return x / (1.0f + sn_exp16(-1.5957691216057308f * x * cubic));
}

static inline sn_v16 relu16(sn_v16 x) { return sn_select16(x < 0.0f, sn_splat16(0.0f), x); /* keeps a NaN */ }

static inline sn_v16 at_most(sn_v16 x, float limit)
{
    return sn_select16(x > limit, sn_splat16(limit), x);
}

static inline sn_v16 clamped16(sn_v16 gate, sn_v16 up, float alpha, float limit)
{
    gate = at_most(gate, limit);
    up = at_most(up, limit);
    up = sn_select16(up < -limit, sn_splat16(-limit), up);
    return gate / (1.0f + sn_exp16(-alpha * gate)) * (up + 1.0f);
}

static inline __attribute__((always_inline)) sn_v16 activate16(const int kind, const sn_activation *a, sn_v16 gate,
                                                               sn_v16 up)
{
    gate *= a->factor;
    if (kind == SN_CLAMPED)
        return clamped16(gate, up, a->alpha, a->limit);
    sn_v16 relu = relu16(gate);
    return up * (kind == SN_SILU        ? silu16(gate)
                 : kind == SN_GELU      ? gelu16(gate)
                 : kind == SN_GELU_TANH ? gelu_tanh16(gate)
                 : kind == SN_RELU      ? relu
                                        : relu * relu);
}

static inline __attribute__((always_inline)) void activate(const int kind, const sn_activation *a, float *gate,
                                                           const float *up, int32_t n)
{
    int32_t i = 0;
    for (; i + 16 <= n; i += 16)
        sn_store16(gate + i, activate16(kind, a, sn_load16(gate + i), up ? sn_load16(up + i) : sn_splat16(1.0f)));
    if (i < n) {
        float gates[16] = {0}, ups[16] = {0};
        size_t bytes = sizeof(float) * (size_t)(n - i);
        memcpy(gates, gate + i, bytes);
        if (up)
            memcpy(ups, up + i, bytes);
        sn_store16(gates, activate16(kind, a, sn_load16(gates), up ? sn_load16(ups) : sn_splat16(1.0f)));
        memcpy(gate + i, gates, bytes);
    }
}

void sn_activate(const sn_activation *a, float *gate, const float *up, int32_t n)
{
    switch (a->kind) {
    case SN_SILU: activate(SN_SILU, a, gate, up, n); break;
    case SN_GELU: activate(SN_GELU, a, gate, up, n); break;
    case SN_GELU_TANH: activate(SN_GELU_TANH, a, gate, up, n); break;
    case SN_RELU: activate(SN_RELU, a, gate, up, n); break;
    case SN_RELU2: activate(SN_RELU2, a, gate, up, n); break;
    default: activate(SN_CLAMPED, a, gate, up, n);
    }
}

void sn_sigmoid_mul(float *x, const float *gate, int32_t n)
{
    int32_t i = 0;
    for (; i + 16 <= n; i += 16)
        sn_store16(x + i, sn_load16(x + i) * sigmoid16(sn_load16(gate + i)));
    for (; i < n; i++)
        x[i] *= sn_sigmoid(gate[i]);
}

float sn_sigmoid(float x) { return sigmoid16(sn_splat16(x))[0]; }
