/* What is done to one row at a time. Each value's operations and their order are the same in every row. */
#ifndef SN_ROWS_H
#define SN_ROWS_H

#include <stdint.h>

/* out = x / sqrt(mean(x^2) + eps) * weight; out may be x. */
void sn_rms_norm(const float *x, const float *weight, float *out, int32_t n, float eps);

/* gate = gate / (1 + exp(-gate)) * up. */
void sn_silu_mul(float *gate, const float *up, int32_t n);

#endif
