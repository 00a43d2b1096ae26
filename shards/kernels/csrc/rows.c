#include "rows.h"

#include <math.h>
#include <string.h>

#include "exp.h"

float sn_sum_of_squares(const float *x, int32_t n, float mean)
{
    sn_v16 sums[4] = {{0}};
    int32_t i = 0;
    for (; i + 16 <= n; i += 16) {
        sn_v16 part = sn_load16(x + i) - mean;
        sums[i / 16 % 4] = sn_fma16(part, part, sums[i / 16 % 4]);
    }
    float rest[16] = {0};
    for (int lane = 0; lane < n - i; lane++)
        rest[lane] = x[i + lane] - mean;
    sn_v16 part = sn_load16(rest);
    sn_v16 sum = (sums[0] + sums[1]) + (sums[2] + sn_fma16(part, part, sums[3]));
    float total = 0;
    for (int lane = 0; lane < 16; lane++)
        total += sum[lane];
    return total;
}

static float mean_of(const float *x, int32_t n)
{
    sn_v16 sum = {0};
    int32_t i = 0;
    for (; i + 16 <= n; i += 16)
        sum += sn_load16(x + i);
    float total = 0;
    for (int lane = 0; lane < 16; lane++)
        total += sum[lane];
    for (; i < n; i++)
        total += x[i];
    return total / (float)n;
}

void sn_norm_row(const sn_norm *norm, const float *x, float *out, int32_t n, int64_t at)
{
    if (norm->kind == SN_NO_NORM) {
        memmove(out, x, sizeof(float) * (size_t)n);
        return;
    }
    const float *weight = norm->weight + at;
    float mean = norm->kind == SN_LAYER_NORM ? mean_of(x, n) : 0.0f;
    float scale = 1.0f / sqrtf(sn_sum_of_squares(x, n, mean) / (float)n + norm->eps);
    for (int32_t i = 0; i < n; i++)
        out[i] = (x[i] - mean) * scale * weight[i];
    if (norm->bias != NULL)
        for (int32_t i = 0; i < n; i++)
            out[i] += norm->bias[at + i];
}

void sn_rotate(float *x, int64_t ld, int32_t heads, const float *restrict cos, const float *restrict sin,
               int32_t rotary)
{
    int32_t half = rotary / 2;
    for (int32_t head = 0; head < heads; head++) {
        float *restrict low = x + head * ld, *restrict high = low + half;
        for (int32_t i = 0; i < half; i++) {
            float a = low[i], b = high[i];
            low[i] = a * cos[i] + b * sin[i];
            high[i] = b * cos[half + i] + a * sin[half + i];
        }
    }
}
