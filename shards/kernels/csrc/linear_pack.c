/* From rows of weights to the kernels' tiles (layouts: sn.h). */
#include <string.h>

#include "linear_int.h"
#include "linear_simd.h"

int64_t sn_group_bytes(int kind) {
    if ((kind & SN_BASE) == SN_INT6) return SN_INT6_BYTES + 2 * SN_TILE;
    if ((kind & SN_BASE) == SN_INT8) return SN_TILE * SN_GROUP + SN_TILE * sn_scale_bytes(kind);
    if ((kind & SN_SCALE_TYPE) == SN_SCALE_K) return SN_TILE * SN_GROUP / 2 + 2 * SN_TILE;
    return SN_TILE * SN_GROUP / 2 + SN_TILE * sn_scale_bytes(kind) * (kind & SN_MINIMUM ? 2 : 1);
}

int64_t sn_tile_bytes(const sn_linear *w) {
    int base = w->kind & SN_BASE;
    if (base <= SN_BF16) return (int64_t)SN_TILE * w->cols * (base == SN_F32 ? 4 : 2);
    int64_t groups = (w->cols + SN_GROUP - 1) / SN_GROUP;
    return groups * sn_group_bytes(w->kind) + groups / SN_K_GROUPS * sn_super_bytes(w->kind);
}

int64_t sn_packed_bytes(const sn_linear *w) {
    return (w->rows + SN_TILE - 1) / SN_TILE * sn_tile_bytes(w);
}

/* float32 that is exact in float16 to float16. */
static uint16_t half_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    int32_t exponent = (int32_t)(bits >> 23 & 255) - 112;
    uint32_t fraction = bits & 0x7fffff;
    if (exponent <= 0) /* subnormal or 0 */
        return exponent < -10 ? sign : (uint16_t)(sign | (fraction | 0x800000) >> (14 - exponent));
    if (exponent >= 31) return (uint16_t)(sign | 0x7c00 | fraction >> 13);
    return (uint16_t)(sign | exponent << 10 | fraction >> 13);
}

static void store_scale(uint8_t *out, float value, int kind) {
    uint16_t half;
    uint32_t bits;
    switch (kind & SN_SCALE_TYPE) {
    case SN_SCALE_F32:
        memcpy(out, &value, 4);
        return;
    case SN_SCALE_F16:
        half = half_of(value);
        break;
    default:
        memcpy(&bits, &value, 4);
        half = (uint16_t)(bits >> 16);
    }
    memcpy(out, &half, 2);
}

/* A group's integers, bytes in the order of the columns, to row `lane` of its tile. */
static void store_integers(uint8_t *out, int64_t lane, const uint8_t *q, int four) {
    uint8_t *target = out + lane / 16 * (SN_TILE * SN_GROUP / (four ? 4 : 2)) + lane % 16 * 4;
    uint32_t low, high;
    for (int i = 0; i < SN_GROUP; i += four ? 8 : 4, target += 64) {
        memcpy(&low, q + i, 4);
        if (four) {
            memcpy(&high, q + i + 4, 4);
            low |= high << 4;
        } else {
            low ^= 0x80808080;
        }
        memcpy(target, &low, 4);
    }
}

void sn_pack_int(const sn_linear *w, int64_t first_row, int64_t n, const uint8_t *q, const float *scale,
                 const float *minimum, void *packed) {
    const int64_t groups = w->cols / SN_GROUP, group_bytes = sn_group_bytes(w->kind);
    const int four = (w->kind & SN_BASE) == SN_INT4, size = sn_scale_bytes(w->kind);
    const int64_t integers = SN_TILE * SN_GROUP / (four ? 2 : 1);
    for (int64_t i = 0; i < n; i++) {
        int64_t row = first_row + i, lane = row % SN_TILE;
        for (int64_t group = 0; group < groups; group++, q += SN_GROUP) {
            uint8_t *out = (uint8_t *)packed + (row / SN_TILE * groups + group) * group_bytes;
            store_integers(out, lane, q, four);
            out += integers + lane * size;
            store_scale(out, scale[i * groups + group], w->kind);
            if (w->kind & SN_MINIMUM) store_scale(out + SN_TILE * size, minimum[i * groups + group], w->kind);
        }
    }
}

/* A group's 32 nibbles as most of GGUF's types have them, the low ones of 16 bytes, then the high ones, to row `lane` of
 * its tile. */
static void store_nibbles(uint8_t *out, int64_t lane, const uint8_t *bytes) {
    const uint32_t low = 0x0f0f0f0f;
    uint8_t *target = out + lane / 16 * (SN_TILE * SN_GROUP / 4) + lane % 16 * 4;
    for (int half = 0; half < 2; half++, target += 64) {
        uint32_t first, second, packed;
        memcpy(&first, bytes + 8 * half, 4);
        memcpy(&second, bytes + 8 * half + 4, 4);
        packed = (first & low) | (second & low) << 4;
        memcpy(target, &packed, 4);
        packed = (first >> 4 & low) | (second & ~low);
        memcpy(target + 2 * 64, &packed, 4);
    }
}

/* The nibbles of two groups as Q4_K has them: the low ones of 32 bytes, then the high ones. */
static void split_nibbles(const uint8_t *bytes, uint8_t *q) {
    for (int i = 0; i < SN_GROUP; i++) {
        q[i] = bytes[i] & 15;
        q[SN_GROUP + i] = bytes[i] >> 4;
    }
}

/* Super-blocks of 256: float16 d and dmin, 12 bytes of 6-bit scales and minima, 128 of nibbles. */
static void pack_q4_k_row(uint8_t *tile, int64_t lane, const uint8_t *in, int64_t groups) {
    const int integers = SN_TILE * SN_GROUP / 2;
    uint8_t q[2 * SN_GROUP];
    for (int64_t super = 0; super < groups / SN_K_GROUPS; super++, in += 144) {
        memcpy(tile + lane * 2, in, 2);
        memcpy(tile + (SN_TILE + lane) * 2, in + 2, 2);
        tile += 2 * 2 * SN_TILE;
        const uint8_t *scales = in + 4, *nibbles = in + 16;
        for (int group = 0; group < SN_K_GROUPS; group++, tile += integers + 2 * SN_TILE) {
            if (group % 2 == 0) split_nibbles(nibbles + group / 2 * SN_GROUP, q);
            store_integers(tile, lane, q + group % 2 * SN_GROUP, 1);
            int low = group & 3;
            uint8_t rest = scales[8 + low];
            tile[integers + lane] =
                group < 4 ? scales[low] & 63 : (uint8_t)((rest & 15) | scales[low] >> 6 << 4);
            tile[integers + SN_TILE + lane] =
                group < 4 ? scales[4 + low] & 63 : (uint8_t)(rest >> 4 | scales[4 + low] >> 6 << 4);
        }
    }
}

/* Super-blocks of 256: for each 128 of them 64 bytes of nibbles, for each 32 bytes of upper bits; then 16 scales, and
   float16 d. */
static void pack_q6_k_row(uint8_t *tile, int64_t lane, const uint8_t *in, int64_t groups) {
    for (int64_t super = 0; super < groups / SN_K_GROUPS; super++, in += 210) {
        memcpy(tile + lane * 2, in + 208, 2);
        tile += 2 * SN_TILE;
        for (int group = 0; group < SN_K_GROUPS; group++, tile += SN_INT6_BYTES + 2 * SN_TILE) {
            const uint8_t *low = in + group / 4 * 64 + group % 2 * 32, *high = in + 128 + group / 4 * 32;
            uint8_t q[SN_GROUP];
            for (int i = 0; i < SN_GROUP; i++) q[i] = low[i] >> (group % 4 / 2 * 4) & 15;
            store_integers(tile, lane, q, 1);
            uint8_t *target = tile + SN_TILE * SN_GROUP / 2 + lane / 16 * 128 + lane % 16 * 4;
            for (int half = 0; half < 2; half++, target += 64)
                for (int b = 0; b < 4; b++) {
                    int bits = 0;
                    for (int quad = 0; quad < 4; quad++)
                        bits |= (high[half * 16 + quad * 4 + b] >> (group % 4 * 2) & 3) << 2 * quad;
                    target[b] = (uint8_t)bits;
                }
            for (int half = 0; half < 2; half++)
                tile[SN_INT6_BYTES + half * SN_TILE + lane] = in[192 + 2 * group + half] ^ 128;
        }
    }
}

/* 2^(e - 128), half of what MXFP4's e means: its nibbles stand for twice their values. The same as ggml: no NaN. */
static uint16_t scale_of_exponent(uint8_t e) { return e < 2 ? (uint16_t)(0x20 << e) : (uint16_t)((e - 1) << 7); }

void sn_pack_file(const sn_linear *w, int64_t first_row, int64_t n, const uint8_t *rows, int64_t row_bytes,
                  const int64_t *order, void *packed) {
    const int64_t groups = w->cols / SN_GROUP, group_bytes = sn_group_bytes(w->kind);
    const int four = (w->kind & SN_BASE) == SN_INT4;
    const int factors = w->kind & SN_MINIMUM ? 2 : 1; /* float16 scale, or scale and minimum, lead a group */
    const int64_t integers = SN_TILE * SN_GROUP / (four ? 2 : 1);
    for (int64_t i = 0; i < n; i++) {
        const uint8_t *in = rows + (order ? order[i] : i) * row_bytes;
        int64_t lane = (first_row + i) % SN_TILE;
        uint8_t *out = (uint8_t *)packed + (first_row + i) / SN_TILE * sn_tile_bytes(w);
        if ((w->kind & SN_BASE) == SN_INT6) {
            pack_q6_k_row(out, lane, in, groups);
            continue;
        }
        if ((w->kind & SN_SCALE_TYPE) == SN_SCALE_K) {
            pack_q4_k_row(out, lane, in, groups);
            continue;
        }
        for (int64_t group = 0; group < groups; group++, out += group_bytes) {
            if (w->kind & SN_FP4) {
                uint16_t scale = scale_of_exponent(*in++);
                memcpy(out + integers + lane * 2, &scale, 2);
            } else {
                for (int f = 0; f < factors; f++, in += 2) memcpy(out + integers + (f * SN_TILE + lane) * 2, in, 2);
            }
            if (four) {
                store_nibbles(out, lane, in);
            } else {
                store_integers(out, lane, in, 0);
            }
            in += four ? SN_GROUP / 2 : SN_GROUP;
        }
    }
}

void sn_pack_dense(const sn_linear *w, int64_t first_row, int64_t n, const void *values, void *packed) {
    const int64_t size = (w->kind & SN_BASE) == SN_F32 ? 4 : 2, cols = w->cols;
    for (int64_t i = 0; i < n; i++) {
        int64_t row = first_row + i;
        const uint8_t *in = (const uint8_t *)values + i * cols * size;
        uint8_t *out = (uint8_t *)packed + (row / SN_TILE * cols * SN_TILE + row % SN_TILE) * size;
        if (size == 4)
            for (int64_t col = 0; col < cols; col++) memcpy(out + col * SN_TILE * 4, in + col * 4, 4);
        else
            for (int64_t col = 0; col < cols; col++) memcpy(out + col * SN_TILE * 2, in + col * 2, 2);
    }
}

void sn_unpack_int8(const sn_linear *w, int64_t row, float *out) {
    const int64_t lane = row % SN_TILE, step = sn_group_bytes(w->kind);
    const uint8_t *group = (const uint8_t *)w->weights + row / SN_TILE * sn_tile_bytes(w);
    for (int64_t col = 0; col < w->cols; group += step) {
        float scales[SN_LANES];
        int vector = (int)(lane / SN_LANES * SN_LANES);
        vf_store(scales, vf_load_scale(group + SN_TILE * SN_GROUP, vector, w->kind & SN_SCALE_TYPE));
        const uint8_t *q = group + lane / 16 * (16 * SN_GROUP) + lane % 16 * 4;
        for (int i = 0; i < SN_GROUP && col < w->cols; i++, col++)
            out[col] = (float)((int)q[i / 4 * 64 + i % 4] - 128) * scales[lane % SN_LANES];
    }
}
