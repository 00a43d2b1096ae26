/* From rows of weights to the kernels' tiles (layouts: sn.h). */
#include <string.h>

#include "linear_int.h"
#include "linear_simd.h"

int64_t sn_tile_bytes(const sn_linear *w) {
    int base = w->kind & SN_BASE;
    if (base <= SN_BF16) return (int64_t)SN_TILE * w->cols * (base == SN_F32 ? 4 : 2);
    int64_t groups = (w->cols + SN_GROUP - 1) / SN_GROUP;
    if (base == SN_FLOAT8) {
        int64_t cols = sn_float8_cols(w);
        return SN_TILE * (groups * SN_GROUP + (w->cols + cols - 1) / cols * sn_scale_bytes(w->kind));
    }
    int led = sn_led(w->kind);
    return groups * sn_group_bytes(w->kind) + (led ? groups / led * sn_super_bytes(w->kind) : 0);
}

int64_t sn_packed_bytes(const sn_linear *w) {
    if ((w->kind & SN_BASE) != SN_STACK) return (int64_t)sn_linear_parts(w) * sn_tile_bytes(w);
    int32_t row;
    sn_linear part;
    int64_t bytes = 0;
    for (int32_t i = 0; (part = sn_stack_part(w, i, &row)).rows; i++) bytes += sn_packed_bytes(&part);
    return bytes;
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

enum { QUADS = SN_GROUP / 4 };

/* Words with `bits` set in each byte. */
#define EACH_BYTE(bits) ((uint32_t)(bits) * 0x01010101u)

/* A plane of `width` bits, a constant: those above `below` of a group's quads of bytes. */
SN_INLINE void store_plane(uint8_t *plane, const uint32_t *quads, const int below, const int width) {
    for (int word = 0; word < width; word++) {
        uint32_t packed = 0;
        for (int i = 0; i < QUADS / width; i++)
            packed |= (quads[word * (QUADS / width) + i] >> below & EACH_BYTE((1 << width) - 1)) << i * width;
        memcpy(plane + word * 64, &packed, 4);
    }
}

/* A group's integers, a byte each in the order of the columns, to row `lane` of its tile. `bits` is a constant. */
SN_INLINE void store_planes(uint8_t *out, int64_t lane, const uint32_t *quads, const int bits) {
    const int64_t panel = lane / 16, at = lane % 16 * 4;
    if (bits & 8) store_plane(out + panel * 8 * 64 + at, quads, 0, 8);
    if (bits & 4) store_plane(out + panel * 4 * 64 + at, quads, 0, 4);
    if (bits & 2) store_plane(out + (bits & 4) * SN_PLANE + panel * 2 * 64 + at, quads, bits & 4, 2);
    if (bits & 1) store_plane(out + (bits & 6) * SN_PLANE + panel * 64 + at, quads, bits & 6, 1);
}

static void store_integers(uint8_t *out, int64_t lane, const uint32_t *quads, int bits) {
    switch (bits) {
    case 8: store_planes(out, lane, quads, 8); break;
    case 6: store_planes(out, lane, quads, 6); break;
    case 5: store_planes(out, lane, quads, 5); break;
    case 4: store_planes(out, lane, quads, 4); break;
    case 3: store_planes(out, lane, quads, 3); break;
    default: store_planes(out, lane, quads, 2);
    }
}

void sn_pack_int(const sn_linear *w, int64_t first_row, int64_t n, const uint8_t *q, const float *scale,
                 const float *minimum, const uint8_t *zero, void *packed) {
    const int64_t groups = w->cols / SN_GROUP;
    const int bits = SN_BITS_OF(w->kind), size = sn_scale_bytes(w->kind), scales = sn_scales(w->kind);
    const int led = sn_led(w->kind), planes = bits * SN_PLANE, zeros = (w->kind & SN_TABLE) == SN_ZERO;
    const uint32_t flip = bits == 8 && w->kind & SN_CENTRED ? EACH_BYTE(128) : 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t row = first_row + i, lane = row % SN_TILE;
        uint8_t *out = (uint8_t *)packed + row / SN_TILE * sn_tile_bytes(w);
        for (int64_t group = 0; group < groups; group++, q += SN_GROUP, out += sn_group_bytes(w->kind)) {
            uint32_t quads[QUADS];
            if (!led || group % led == 0) {
                uint8_t *to = out + (led ? 0 : planes);
                for (int s = 0; s < scales; s++, to += SN_TILE * size)
                    store_scale(to + lane * size, *scale++, w->kind);
                if (w->kind & SN_MINIMUM)
                    for (int s = 0; s < scales; s++, to += SN_TILE * size)
                        store_scale(to + lane * size, *minimum++, w->kind);
                if (zeros) to[lane] = *zero++;
                out += sn_super_bytes(w->kind);
            }
            memcpy(quads, q, sizeof quads);
            for (int i = 0; i < QUADS; i++) quads[i] ^= flip;
            store_integers(out, lane, quads, bits);
        }
    }
}

/* The low nibbles of 16 bytes, then the high ones. */
SN_INLINE void take_nibbles(const uint8_t *bytes, uint32_t *quads) {
    memcpy(quads, bytes, SN_GROUP / 2);
    for (int i = 0; i < QUADS / 2; i++) {
        quads[QUADS / 2 + i] = quads[i] >> 4 & EACH_BYTE(15);
        quads[i] &= EACH_BYTE(15);
    }
}

/* 2^(e - 128), half of what MXFP4's e means: its nibbles stand for twice their values. The same as ggml: no NaN. */
static uint16_t scale_of_exponent(uint8_t e) { return e < 2 ? (uint16_t)(0x20 << e) : (uint16_t)((e - 1) << 7); }

/* Groups with scales of their own: float16 scale and minimum, or an exponent; the fifth bits; nibbles, or bytes. */
static void pack_groups(const sn_linear *w, uint8_t *out, int64_t lane, const uint8_t *in) {
    const int kind = w->kind, bits = SN_BITS_OF(kind), factors = kind & SN_MINIMUM ? 2 : 1, step = sn_group_bytes(kind);
    for (int64_t left = w->cols / SN_GROUP; left > 0; left--, out += step) {
        uint32_t quads[QUADS];
        uint8_t *scales = out + bits * SN_PLANE + lane * 2;
        if ((kind & SN_TABLE) == SN_FP4) {
            uint16_t scale = scale_of_exponent(*in++);
            memcpy(scales, &scale, 2);
        } else {
            for (int f = 0; f < factors; f++, in += 2) memcpy(scales + f * SN_TILE * 2, in, 2);
        }
        if (bits == 8) {
            memcpy(quads, in, sizeof quads);
            for (int i = 0; i < QUADS; i++) quads[i] ^= EACH_BYTE(128);
            store_planes(out, lane, quads, 8);
            in += SN_GROUP;
            continue;
        }
        if (bits == 5) {
            uint32_t fifth;
            memcpy(&fifth, in, 4);
            take_nibbles(in + 4, quads);
            for (int i = 0; i < QUADS; i++) /* bits 0 to 3 to the bytes' lowest */
                quads[i] |= ((fifth >> 4 * i & 15) * 0x204081u & EACH_BYTE(1)) << 4;
            store_planes(out, lane, quads, 5);
            in += 4 + SN_GROUP / 2;
            continue;
        }
        take_nibbles(in, quads);
        store_planes(out, lane, quads, 4);
        in += SN_GROUP / 2;
    }
}

/* Where a super-block of GGUF has its bytes. */
typedef struct {
    int bytes, d, minimum, scales, low, high;
} k_layout;

SN_INLINE k_layout layout_of(const int kind) {
    switch (SN_BITS_OF(kind)) {
    case 2: return (k_layout){.bytes = 84, .d = 80, .minimum = 82, .scales = 0, .low = 16};
    case 3: return (k_layout){.bytes = 110, .d = 108, .scales = 96, .low = 32, .high = 0};
    case 5: return (k_layout){.bytes = 176, .d = 0, .minimum = 2, .scales = 4, .low = 48, .high = 16};
    case 6: return (k_layout){.bytes = 210, .d = 208, .scales = 192, .low = 0, .high = 128};
    default:
        if (kind & SN_TABLE) return (k_layout){.bytes = 136, .d = 0, .scales = 2, .low = 8};
        return (k_layout){.bytes = 144, .d = 0, .minimum = 2, .scales = 4, .low = 16};
    }
}

/* A group's integers: `low` and `high` are where the super-block has their lower and their upper bits. */
SN_INLINE void take_integers(const int kind, int group, const uint8_t *low, const uint8_t *high, uint32_t *quads) {
    const int bits = SN_BITS_OF(kind);
    if (kind & SN_TABLE) {
        take_nibbles(low + group * (SN_GROUP / 2), quads);
        return;
    }
    low += bits == 6 ? group / 4 * 64 + group % 2 * SN_GROUP : bits < 4 ? group / 4 * SN_GROUP : group / 2 * SN_GROUP;
    const int shift = bits < 4 ? group % 4 * 2 : bits == 6 ? group % 4 / 2 * 4 : group % 2 * 4;
    const uint32_t mask = EACH_BYTE(bits < 4 ? 3 : 15);
    memcpy(quads, low, SN_GROUP);
    for (int i = 0; i < QUADS; i++) quads[i] = quads[i] >> shift & mask;
    if (bits == 2 || bits == 4) return;
    const int at = bits == 6 ? group % 4 * 2 : group, to = bits == 6 ? 4 : bits - 1;
    const uint32_t upper = EACH_BYTE(bits == 6 ? 3 : 1);
    uint32_t rest[QUADS];
    memcpy(rest, high + (bits == 6 ? group / 4 * SN_GROUP : 0), SN_GROUP);
    for (int i = 0; i < QUADS; i++) quads[i] |= (rest[i] >> at & upper) << to;
}

/* Its scales, then its minima: as many bytes as a group has of a row. */
SN_INLINE void take_scales(const int kind, int group, const uint8_t *in, uint8_t out[2]) {
    const int low = group & 3;
    switch (SN_BITS_OF(kind)) {
    case 2:
        memcpy(out, in + 2 * group, 2);
        break;
    case 3: /* nibbles of 8 and 8, and their upper bits, from 4 to a byte on */
        for (int i = 0; i < 2; i++) {
            int n = 2 * group + i, upper = in[8 + n % 4] >> n / 4 * 2 & 3;
            out[i] = (uint8_t)((in[n % 8] >> n / 8 * 4 & 15) + upper * 16 - 32 + 128);
        }
        break;
    case 6:
        for (int i = 0; i < 2; i++) out[i] = in[2 * group + i] ^ 128;
        break;
    default:
        if (kind & SN_TABLE) { /* 16 bits of upper ones, then nibbles */
            int upper = in[group / 4] >> group % 4 * 2 & 3;
            out[0] = (uint8_t)((in[2 + group / 2] >> group % 2 * 4 & 15) + upper * 16 - 32 + 128);
        } else { /* four scales and four minima in six bits; of the others nibbles, and two bits above those */
            uint8_t rest = in[8 + low];
            out[0] = group < 4 ? in[low] & 63 : (uint8_t)((rest & 15) | in[low] >> 6 << 4);
            out[1] = group < 4 ? in[4 + low] & 63 : (uint8_t)(rest >> 4 | in[4 + low] >> 6 << 4);
        }
    }
}

/* `kind` is a constant. */
SN_INLINE void super_blocks(const int kind, int64_t cols, uint8_t *out, int64_t lane, const uint8_t *in) {
    const int bytes = sn_group_bytes(kind), integers = SN_BITS_OF(kind) * SN_PLANE;
    const k_layout layout = layout_of(kind);
    for (int64_t left = cols / (SN_K_GROUPS * SN_GROUP); left > 0; left--, in += layout.bytes) {
        memcpy(out + lane * 2, in + layout.d, 2);
        if (kind & SN_MINIMUM) memcpy(out + (SN_TILE + lane) * 2, in + layout.minimum, 2);
        out += sn_super_bytes(kind);
        for (int group = 0; group < SN_K_GROUPS; group++, out += bytes) {
            uint32_t quads[QUADS];
            uint8_t scales[2];
            take_integers(kind, group, in + layout.low, in + layout.high, quads);
            store_planes(out, lane, quads, SN_BITS_OF(kind));
            take_scales(kind, group, in + layout.scales, scales);
            for (int at = integers, i = 0; at < bytes; at += SN_TILE, i++) out[at + lane] = scales[i];
        }
    }
}

static void pack_super_blocks(const sn_linear *w, uint8_t *out, int64_t lane, const uint8_t *in) {
    enum { K = SN_INT | SN_SCALE_K, K4 = SN_INT | SN_SCALE_K4 };
    switch (w->kind & (SN_BITS | SN_TABLE)) {
    case 6 * SN_BIT: super_blocks(K | 6 * SN_BIT | SN_CENTRED | SN_HALVES, w->cols, out, lane, in); break;
    case 5 * SN_BIT: super_blocks(K | 5 * SN_BIT | SN_MINIMUM, w->cols, out, lane, in); break;
    case 4 * SN_BIT: super_blocks(K | 4 * SN_BIT | SN_MINIMUM, w->cols, out, lane, in); break;
    case 4 * SN_BIT | SN_IQ4: super_blocks(K | 4 * SN_BIT | SN_IQ4, w->cols, out, lane, in); break;
    case 3 * SN_BIT: super_blocks(K | 3 * SN_BIT | SN_CENTRED | SN_HALVES, w->cols, out, lane, in); break;
    default: super_blocks(K4 | 2 * SN_BIT | SN_MINIMUM | SN_HALVES, w->cols, out, lane, in);
    }
}

/* Plain values. */
static void pack_values(const sn_linear *w, uint8_t *out, int64_t lane, const uint8_t *in) {
    if ((w->kind & SN_BASE) == SN_F32)
        for (int64_t col = 0; col < w->cols; col++) memcpy(out + (col * SN_TILE + lane) * 4, in + col * 4, 4);
    else
        for (int64_t col = 0; col < w->cols; col++) memcpy(out + (col * SN_TILE + lane) * 2, in + col * 2, 2);
}

void sn_pack_file(const sn_linear *w, int64_t first_row, int64_t n, const uint8_t *rows, int64_t row_bytes,
                  const int64_t *order, void *packed) {
    if ((w->kind & SN_BASE) == SN_STACK) {
        sn_linear stack = *w, part;
        int32_t row, i = 0;
        stack.weights = packed;
        for (part = sn_stack_part(&stack, 0, &row); part.rows && first_row >= row + part.rows;) part = sn_stack_part(&stack, ++i, &row);
                sn_pack_file(&part, first_row - row, n, rows, row_bytes, order, (void *)part.weights);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        const uint8_t *in = rows + (order ? order[i] : i) * row_bytes;
        int64_t lane = (first_row + i) % SN_TILE;
        uint8_t *out = (uint8_t *)packed + (first_row + i) / SN_TILE * sn_tile_bytes(w);
        if ((w->kind & SN_BASE) != SN_INT)
            pack_values(w, out, lane, in);
        else if (sn_has_super(w->kind))
            pack_super_blocks(w, out, lane, in);
        else
            pack_groups(w, out, lane, in);
    }
}

/* A tile's rows together: what a group of columns is written to stays in the cache. */
void sn_pack_float8(const sn_linear *w, int64_t first_row, int64_t n, const uint8_t *q, const float *scale,
                    void *packed) {
    const int size = sn_scale_bytes(w->kind), cols = sn_float8_cols(w), groups = (w->cols + cols - 1) / cols;
    for (int64_t first = 0, end; first < n; first = end) {
        const int64_t tile = (first_row + first) / SN_TILE, lane = first_row - tile * SN_TILE;
        uint8_t *out = (uint8_t *)packed + tile * sn_tile_bytes(w);
        end = (tile + 1) * SN_TILE - first_row < n ? (tile + 1) * SN_TILE - first_row : n;
        for (int col = 0; col < w->cols; col += SN_GROUP, out += SN_TILE * SN_GROUP) {
            if (col % cols == 0) {
                for (int64_t i = first; i < end; i++)
                    store_scale(out + (lane + i) * size, scale[i * groups + col / cols], w->kind);
                out += SN_TILE * size;
            }
            const int count = w->cols - col < SN_GROUP ? w->cols - col : SN_GROUP;
            for (int64_t i = first; i < end; i++) {
                const uint8_t *in = q + i * w->cols + col;
                uint8_t *to = out + (lane + i) * 2;
                int c = 0;
                for (; c + 2 <= count; c += 2) memcpy(to + c * SN_TILE, in + c, 2);
                if (c < count) to[c * SN_TILE] = in[c];
            }
        }
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
