/* What an MLP does between its products: see ``MlpConfig`` in shards/formats/blocks/mlp.py. */
#ifndef SN_ACTIVATION_H
#define SN_ACTIVATION_H

#include <stdint.h>

enum { SN_SILU = 0, SN_GELU = 1, SN_GELU_TANH = 2, SN_RELU = 3, SN_RELU2 = 4, SN_CLAMPED = 5 };

typedef struct sn_activation {
    int32_t kind;       /* SN_SILU ... */
    float alpha, limit; /* of SN_CLAMPED, which needs `up` */
    float factor;       /* of the gate, before all else */
} sn_activation;

/* gate = activation(gate) * up; without `up` where that is NULL. Each value's operations are the same wherever it lies. */
void sn_activate(const sn_activation *activation, float *gate, const float *up, int32_t n);

/* x *= 1 / (1 + exp(-gate)), value by value. */
void sn_sigmoid_mul(float *x, const float *gate, int32_t n);

/* 1 / (1 + exp(-x)): the same bits as above. */
float sn_sigmoid(float x);

#endif
