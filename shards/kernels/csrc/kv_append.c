/* Storing keys and values: see attention.h. */

#include "attention.h"

#include <math.h>
#include <string.h>

#include "float_simd.h"
#include "kv_pages.h"

/* A row of one head. The scale is as in kv_pool.quantize_int8. */
static float scale_of(const float *x, int dim)
{
    uint32_t largest = 0; /* magnitudes order like their bits; NaN is above infinity */
    for (int i = 0; i < dim; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    float magnitude;
    memcpy(&magnitude, &largest, 4);
    return (magnitude < 1e-30f ? 1e-30f : magnitude) / 127.0f;
}

/* Any 64 elements of a row, narrowed. */
typedef union narrowed {
    float f32[64];
    uint16_t u16[64];
    int8_t i8[64];
} narrowed;

static void narrow(int dtype, const float *x, narrowed *to, int count, float scale)
{
    int i = 0;
    switch (dtype) {
    case SN_KV_FLOAT32: memcpy(to->f32, x, sizeof(float) * (size_t)count); break;
    case SN_KV_BFLOAT16:
        for (; i < count; i++) to->u16[i] = to_bfloat16(x[i]);
        break;
    case SN_KV_FLOAT16:
        for (; i + LANES <= count; i += LANES) to_halves(x + i, to->u16 + i);
        for (; i < count; i++) to->u16[i] = to_half(x[i]);
        break;
    default: {
        float inverse = 1.0f / scale;
        for (; i < count; i++) {
            float q = rintf(x[i] * inverse);
            to->i8[i] = (int8_t)(q >= -127.0f && q <= 127.0f ? (int)q : 0); /* 0 for NaN */
        }
    }
    }
}

/* One row of one head; consecutive elements go `stride` elements apart. */
static void put_row(int dtype, const float *x, char *to, int64_t stride, int dim, float scale)
{
    narrowed part;
    for (int done = 0; done < dim; done += 64) {
        int count = dim - done < 64 ? dim - done : 64;
        narrow(dtype, x + done, &part, count, scale);
        char *at = to + done * stride * ELEMENT_BYTES[dtype];
        if (stride == 1)
            memcpy(at, &part, (size_t)(count * ELEMENT_BYTES[dtype]));
        else if (ELEMENT_BYTES[dtype] == 4)
            for (int i = 0; i < count; i++) ((float *)at)[i * stride] = part.f32[i];
        else if (ELEMENT_BYTES[dtype] == 2)
            for (int i = 0; i < count; i++) ((uint16_t *)at)[i * stride] = part.u16[i];
        else
            for (int i = 0; i < count; i++) ((int8_t *)at)[i * stride] = part.i8[i];
    }
}

void sn_kv_append(const sn_attention *attention, const sn_kv *kv, const sn_piece *piece, int block, const float *k,
                  const float *v, int64_t ld, int kv_first, int kv_end)
{
    int key_dim = attention->key_dim, value_dim = attention->value_dim, size = ELEMENT_BYTES[kv->dtype];
    for (int i = 0; i < piece->count; i++) {
        int64_t position = (int64_t)piece->start + i, row = (int64_t)(piece->row + i) * ld;
        int64_t slot = slot_of(piece, block, position / SN_PAGE);
        int64_t token = position % SN_PAGE;
        for (int h = kv_first; h < kv_end; h++) {
            page_head page = locate(attention, kv, slot, h);
            const float *key = k + row + (int64_t)h * key_dim;
            float scale = 0;
            if (page.key_scales != NULL) page.key_scales[token] = scale = scale_of(key, key_dim);
            put_row(kv->dtype, key, page.keys + token * size, SN_PAGE, key_dim, scale);
            if (attention->shared) continue;
            const float *value = v + row + (int64_t)h * value_dim;
            if (page.value_scales != NULL) page.value_scales[token] = scale = scale_of(value, value_dim);
            put_row(kv->dtype, value, page.values + token * value_dim * size, 1, value_dim, scale);
        }
    }
}
