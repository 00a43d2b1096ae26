#include "rows.h"

#include <math.h>
#include <string.h>

#include "exp.h"

void sn_rms_norm(const float *x, const float *weight, float *out, int32_t n, float eps)
{
    sn_v16 sums[4] = {{0}};
    int32_t i = 0;
    for (; i + 16 <= n; i += 16) {
        sn_v16 part = sn_load16(x + i);
        sums[i / 16 % 4] = sn_fma16(part, part, sums[i / 16 % 4]);
    }
    float rest[16] = {0};
    memcpy(rest, x + i, sizeof(float) * (size_t)(n - i));
    sn_v16 part = sn_load16(rest);
    sn_v16 sum = (sums[0] + sums[1]) + (sums[2] + sn_fma16(part, part, sums[3]));
    float total = 0;
    for (int lane = 0; lane < 16; lane++)
        total += sum[lane];
    float scale = 1.0f / sqrtf(total / (float)n + eps);
    for (i = 0; i < n; i++)
        out[i] = x[i] * scale * weight[i];
}

static inline sn_v16 silu_mul(sn_v16 gate, sn_v16 up)
{
    return gate / (1.0f + sn_exp16(-gate)) * up;
}

void sn_silu_mul(float *gate, const float *up, int32_t n)
{
    int32_t i = 0;
    for (; i + 16 <= n; i += 16)
        sn_store16(gate + i, silu_mul(sn_load16(gate + i), sn_load16(up + i)));
    if (i < n) {
        float gates[16] = {0}, ups[16] = {0};
        size_t bytes = sizeof(float) * (size_t)(n - i);
        memcpy(gates, gate + i, bytes);
        memcpy(ups, up + i, bytes);
        sn_store16(gates, silu_mul(sn_load16(gates), sn_load16(ups)));
        memcpy(gate + i, gates, bytes);
    }
}
