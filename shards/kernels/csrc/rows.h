/* Norms and rotations of one row. Each value's operations and their order are the same in every row. */
#ifndef SN_ROWS_H
#define SN_ROWS_H

#include <stdint.h>

enum { SN_NO_NORM = 0, SN_RMS_NORM = 1, SN_LAYER_NORM = 2 };

typedef struct sn_norm {
    const float *weight; /* of each value */
    const float *bias;   /* likewise, or NULL */
    int32_t kind;        /* SN_..._NORM */
    float eps;
} sn_norm;

/* out = x / sqrt(mean(x^2) + eps) * weight [+ bias], SN_LAYER_NORM: of x minus its mean; a copy for SN_NO_NORM. `n` >= 1
   values, whose weights and biases begin at number `at` of the norm's. out may be x. */
void sn_norm_row(const sn_norm *norm, const float *x, float *out, int32_t n, int64_t at);

/* Of (x - mean)^2. */
float sn_sum_of_squares(const float *x, int32_t n, float mean);

/* Turns the first `rotary` dimensions of each of `heads` vectors, `ld` floats apart. cos and sin: `rotary` floats. The
   half-rotation's minus sign is in sin: rotated = x * cos + (x with its halves swapped) * sin. */
void sn_rotate(float *x, int64_t ld, int32_t heads, const float *cos, const float *sin, int32_t rotary);

#endif
