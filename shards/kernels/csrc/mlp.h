/* An MLP: down(activation(gate(x)) * up(x)), or down(activation(up(x))). */
#ifndef SN_MLP_H
#define SN_MLP_H

#include "activation.h"
#include "sn.h"

typedef struct sn_mlp {
    sn_linear gate_up; /* hidden -> gate, up stacked (2 * inner), or up alone (inner) */
    sn_linear down;    /* inner -> hidden */
    sn_activation activation;
    int32_t inner;
    int32_t gated; /* 0: without gate */
} sn_mlp;

#endif
