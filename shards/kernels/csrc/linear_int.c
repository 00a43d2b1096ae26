/* Integer weights times fixed-point activations.
 *
 * A group of 32 activations is x = scale * (d0 + 256 d1 + 65536 d2) with signed bytes d. The digits' products
 * with the weights' bytes are summed exactly in int32, four columns at a time (vpdpbusd, sdot), put together,
 * converted to float once a group, and added to the row's sum in the order of the groups.
 */
#include <math.h>

#include "linear_int.h"
#include "linear_simd.h"

/* Bytes ahead: the hardware's own stops at each page. Fewer bits go by faster; with 4096 they are a tenth slower. */
#define PREFETCH(bits) ((bits) == 8 ? 4096 : 8192)
/* Vectors of outputs, and input rows times digits, that are summed at a time: what the registers hold. */
#define STEP (SN_VECTORS < 4 ? SN_VECTORS : 4)
#define MOST_ROWS (SN_LANES == 16 && SN_REGISTERS == 32 ? 6 : 1)
#define QUADS (SN_GROUP / 4)

/* What the integers of a table stand for, plus an offset. */
#define FP4_OFFSET 12
static const uint8_t FP4[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
#define IQ4(value) (uint8_t)((value) + SN_INT8_OFFSET)
static const uint8_t IQ4_NL[16] = {IQ4(-127), IQ4(-104), IQ4(-83), IQ4(-65), IQ4(-49), IQ4(-35), IQ4(-22), IQ4(-10),
                                   IQ4(1),    IQ4(13),   IQ4(25),  IQ4(38),  IQ4(53),  IQ4(69),  IQ4(89),  IQ4(113)};

/* What is to be taken off the bytes that are multiplied. */
static int32_t offset_of(int kind) {
    int table = kind & SN_TABLE, bits = SN_BITS_OF(kind);
    if (table && table != SN_ZERO) return table == SN_FP4 ? FP4_OFFSET : SN_INT8_OFFSET;
    const int32_t stored = bits == 8 ? SN_INT8_OFFSET - 128 : 0; /* off the bytes that integers lie in */
    return stored + (kind & SN_CENTRED ? 1 << (bits - 1) : 0);
}

/* What follows the digits of a prepared group. */
typedef struct {
    int32_t low[2], high[2]; /* sums of the two lowest digits taken together, and of a third: of all, of the second half */
    float scale;
    float sum, halves[2]; /* of the activations */
} group_tail;

static int64_t group_bytes(int digits) { return digits * SN_GROUP + (int64_t)sizeof(group_tail); }

static int64_t groups_of(const sn_linear *w) { return (w->cols + SN_GROUP - 1) / SN_GROUP; }

int64_t sn_int_scratch(const sn_linear *w, int64_t n) { return groups_of(w) * n * group_bytes(w->variant); }

/* `count` activations (the rest of the group is 0) to digits, in the row's place of its group. `digits` is a constant. */
SN_INLINE void prepare_group(const float *x, int count, const int digits, int8_t *out) {
    float padded[SN_GROUP];
    if (count < SN_GROUP) {
        memset(padded, 0, sizeof padded);
        memcpy(padded, x, (size_t)count * sizeof *x);
        x = padded;
    }
    int32_t largest_bits = 0; /* of magnitudes: they order like integers, and NaN is above all */
    for (int i = 0; i < SN_GROUP; i++) {
        int32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff;
        largest_bits = bits > largest_bits ? bits : largest_bits;
    }
    /* 127 in each digit; a little less where rounding could go beyond. */
    const float steps = digits == 1 ? 127.0f : digits == 2 ? 32639.0f : 8355700.0f;
    float largest = sn_float_of_bits((uint32_t)largest_bits);
    group_tail tail = {.scale = 0.0f};
    int32_t q[SN_GROUP];
    float inverse = 0.0f;
    if (largest_bits >= 0x7f800000) {
        tail.scale = NAN; /* the output says so */
    } else if (largest > 0x1p-96f) { /* below, 1 / scale overflows: taken for 0 */
        tail.scale = largest / steps;
        inverse = steps / largest;
    }
    if (inverse == 0.0f) {
        memset(q, 0, sizeof q);
    } else {
        for (int i = 0; i < SN_GROUP; i++) {
            float value = x[i] * inverse;
            value += copysignf(0.5f, value);
            q[i] = (int32_t)value;
        }
    }
    for (int d = digits - 1; d >= 0; d--) { /* the highest digit lies first */
        int8_t *plane = out + (digits - 1 - d) * SN_GROUP;
        int shift = 8 * d;
        /* Rounding half of the lower digits' range up makes each digit the nearest. */
        int32_t half = shift ? 0x808080 >> (24 - shift) : 0;
        for (int i = 0; i < SN_GROUP; i++) plane[i] = (int8_t)((q[i] + half) >> shift);
    }
    int32_t total[2] = {0, 0}, high[2] = {0, 0};
    for (int half = 0; half < 2; half++) { /* one after the other, so that each is summed in vectors */
        const int first = half * SN_GROUP / 2;
        for (int i = first; i < first + SN_GROUP / 2; i++) total[half] += q[i];
        for (int i = first; i < first + SN_GROUP / 2 && digits == 3; i++) high[half] += (q[i] + 0x8080) >> 16;
        tail.halves[half] = (float)total[half] * tail.scale;
    }
    tail.sum = (float)(total[0] + total[1]) * tail.scale;
    tail.high[0] = high[0] + high[1];
    tail.high[1] = high[1];
    for (int half = 0; half < 2; half++) tail.low[half] = (half ? 0 : total[0]) + total[1] - tail.high[half] * 65536;
    memcpy(out + digits * SN_GROUP, &tail, sizeof tail);
}

void sn_int_prepare(const sn_linear *w, const float *x, int64_t ldx, int64_t n, void *scratch, int64_t first,
                    int64_t end, int64_t first_col, int64_t end_col) {
    int digits = w->variant;
    int64_t bytes = group_bytes(digits);
    for (int64_t row = first; row < end; row++)
        for (int64_t group = first_col / SN_GROUP; group * SN_GROUP < end_col; group++) {
            int64_t left = w->cols - group * SN_GROUP;
            /* Blocks of input rows, in them groups, in them rows: the order in which the kernel reads. */
            int64_t block = row / SN_BLOCK_ROWS * SN_BLOCK_ROWS;
            int64_t rows = n - block < SN_BLOCK_ROWS ? n - block : SN_BLOCK_ROWS;
            int8_t *out = (int8_t *)scratch + (block * groups_of(w) + group * rows + row - block) * bytes;
            const float *from = x + row * ldx + group * SN_GROUP;
            int count = left < SN_GROUP ? (int)left : SN_GROUP;
            if (digits == 1)
                prepare_group(from, count, 1, out);
            else if (digits == 2)
                prepare_group(from, count, 2, out);
            else
                prepare_group(from, count, 3, out);
        }
}

/* A group of a tile's weights, as bytes to multiply. */
typedef struct {
    vi w[SN_VECTORS][QUADS];
    vf scale[2][SN_VECTORS], minimum[2][SN_VECTORS];   /* of each half with SN_HALVES, else of all */
    vf factor[SN_VECTORS], minimum_factor[SN_VECTORS]; /* of a super-block's scales and minima */
    vi zero[SN_VECTORS]; /* of groups that share: what is to be taken off the bytes of a row */
    int32_t offset;
    int has_minimum, left; /* groups that have the scales of the one before */
} tile_group;

/* What a sum of digits starts from, so that the weights' offset is taken off: `of` has it of all and of the second half. */
SN_INLINE vi start(const tile_group *g, const int32_t of[2], const int v, const int half, const int form) {
    const int halves = sn_scales(form);
    if (SN_COLS_OF(form) != 0) return vi_mul(g->zero[v], vi_set1(-of[0]));
    return vi_set1(-g->offset * (half ? of[1] : halves == 2 ? of[0] - of[1] : of[0]));
}

/* `count` input rows' share of one half of a group, or of all where that has one scale, for STEP vectors from v0 on:
 * sums += scale * (w . x) + minimum * x. `half` and what follows are constants. */
SN_INLINE void add_half(const tile_group *g, const int8_t *x, vf *sums, int v0, const int half, const int count,
                        const int form, const int digits) {
    const int halves = sn_scales(form), quads = QUADS / halves;
    const int small = SN_BITS_OF(form) != 8 && (form & SN_TABLE) != SN_IQ4;
    const int64_t bytes = digits * SN_GROUP + (int64_t)sizeof(group_tail);
    vi acc[MOST_ROWS][3][STEP];
    for (int m = 0; m < count; m++) {
        group_tail tail;
        memcpy(&tail, x + m * bytes + digits * SN_GROUP, sizeof tail);
        for (int v = 0; v < STEP; v++) {
            for (int d = 0; d < digits - 1; d++) acc[m][d][v] = vi_set1(0);
            if (digits == 3) acc[m][0][v] = start(g, tail.high, v0 + v, half, form);
            acc[m][digits - 1][v] = start(g, tail.low, v0 + v, half, form);
        }
    }
    for (int quad = half * quads; quad < (half + 1) * quads; quad++)
        for (int m = 0; m < count; m++)
            for (int d = 0; d < digits; d++) {
                int32_t four = sn_dword(x + m * bytes + d * SN_GROUP + 4 * quad);
                for (int v = 0; v < STEP; v++)
                    acc[m][d][v] = vi_dot4(acc[m][d][v], g->w[v0 + v][quad], four, small);
            }
    for (int m = 0; m < count; m++) {
        group_tail tail;
        memcpy(&tail, x + m * bytes + digits * SN_GROUP, sizeof tail);
        for (int v = 0; v < STEP; v++) {
            vi low = acc[m][digits - 1][v];
            if (digits > 1) low = vi_shl8_add(acc[m][digits - 2][v], low);
            vf product = vi_float(low), *sum = sums + m * SN_VECTORS + v0 + v;
            if (digits > 2) product = vf_fma(vi_float(acc[m][0][v]), vf_set1(65536.0f), product);
            vf total = vf_fma(product, vf_mul(g->scale[half][v0 + v], vf_set1(tail.scale)), *sum);
            if (g->has_minimum)
                total = vf_fma(g->minimum[half][v0 + v], vf_set1(halves == 2 ? tail.halves[half] : tail.sum), total);
            *sum = total;
        }
    }
}

SN_INLINE void add_rows(const tile_group *g, const int8_t *x, vf *sums, const int count, const int form,
                        const int digits) {
    for (int v0 = 0; v0 < SN_VECTORS; v0 += STEP) {
        add_half(g, x, sums, v0, 0, count, form, digits);
        if (sn_scales(form) == 2) add_half(g, x, sums, v0, 1, count, form, digits);
    }
}

/* q with the bits that the plane of `width` bits has of these four columns. `bits` and `width` are constants. */
SN_INLINE vi with_plane(vi q, const uint8_t *planes, int v, int quad, const int bits, const int width) {
    if (!(bits & width)) return q;
    const int below = bits & -2 * width, at = quad * width; /* bits in wider planes; of the panel's */
    const int panel = v * SN_LANES / 16, lane = v * SN_LANES % 16, shift = below - at % 8;
    vi plane = vi_load(planes + below * SN_PLANE + panel * width * 64 + at / 8 * 64 + lane * 4);
    if (width == 8) return plane;
    if (shift) plane = vi_shl(plane, shift);
    const vi mask = vi_set1((int32_t)((((1u << width) - 1) << below) * 0x01010101u));
    return below ? vi_merge(q, plane, mask) : vi_and(plane, mask);
}

SN_INLINE void load_integers(tile_group *g, const uint8_t *planes, const int form) {
    const int bits = SN_BITS_OF(form);
    for (int v = 0; v < SN_VECTORS; v++)
        for (int quad = 0; quad < QUADS; quad++) {
            vi q = vi_set1(0);
            q = with_plane(q, planes, v, quad, bits, 8);
            q = with_plane(q, planes, v, quad, bits, 4);
            q = with_plane(q, planes, v, quad, bits, 2);
            q = with_plane(q, planes, v, quad, bits, 1);
            if (form & SN_TABLE) q = vi_lookup((form & SN_TABLE) == SN_FP4 ? FP4 : IQ4_NL, q);
            g->w[v][quad] = bits == 8 && !SN_INT8_OFFSET ? vi_flip_signs(q) : q;
        }
}

SN_INLINE void load_scales(tile_group *g, const uint8_t *stored, const int form, int kind) {
    const int scales = sn_scales(form), type = kind & SN_SCALE_TYPE;
    for (int half = 0; half < scales; half++)
        for (int v = 0; v < SN_VECTORS; v++) {
            int at = half * SN_TILE + v * SN_LANES, least = scales * SN_TILE + at;
            vf *scale = &g->scale[half][v], *minimum = &g->minimum[half][v];
            if (type == SN_SCALE_K4) {
                vi both = vi_load_u8(stored + at);
                *scale = vf_mul(vi_float(vi_and(both, vi_set1(15))), g->factor[v]);
                *minimum = vf_mul(vi_float(vi_shl(both, -4)), g->minimum_factor[v]);
            } else if (type == SN_SCALE_K && g->has_minimum) {
                *scale = vf_mul(vi_float(vi_load_u8(stored + at)), g->factor[v]);
                *minimum = vf_mul(vi_float(vi_load_u8(stored + least)), g->minimum_factor[v]);
            } else if (type == SN_SCALE_K) { /* d * (scale + 128) - d * 128: exact */
                *scale = vf_fma(vi_float(vi_load_u8(stored + at)), g->factor[v], g->minimum_factor[v]);
            } else {
                *scale = vf_load_scale(stored, at, type);
                if (g->has_minimum) *minimum = vf_load_scale(stored, least, type);
            }
        }
}

/* What leads groups that share it. */
SN_INLINE void load_shared(tile_group *g, const uint8_t *stored, const int form, int kind) {
    load_scales(g, stored, form, kind);
    stored += sn_super_bytes(kind) - SN_TILE;
    for (int v = 0; v < SN_VECTORS; v++)
        g->zero[v] = (kind & SN_TABLE) == SN_ZERO ? vi_add(vi_load_u8(stored + v * SN_LANES), vi_set1(g->offset))
                                                  : vi_set1(g->offset);
}

/* What leads a super-block. */
SN_INLINE void load_factors(tile_group *g, const uint16_t *stored) {
    for (int v = 0; v < SN_VECTORS; v++) {
        g->factor[v] = vf_load_f16(stored + v * SN_LANES);
        g->minimum_factor[v] = g->has_minimum ? vf_mul(vf_load_f16(stored + SN_TILE + v * SN_LANES), vf_set1(-1.0f))
                                              : vf_mul(g->factor[v], vf_set1(-128.0f));
    }
}

/* The next group of a tile. Returns where the one after it lies. */
SN_INLINE const uint8_t *load_group(tile_group *g, const uint8_t *stored, int64_t group, const int form, int kind) {
    const int64_t step = sn_group_bytes(kind);
    if (SN_BITS_OF(form) != 8 && sn_has_super(kind) && group % SN_K_GROUPS == 0) {
        load_factors(g, (const uint16_t *)stored);
        stored += sn_super_bytes(kind);
    }
    if (SN_COLS_OF(form) != 0 && g->left-- == 0) {
        load_shared(g, stored, form, kind);
        stored += sn_super_bytes(kind);
        g->left = sn_led(kind) - 1;
    }
    for (int64_t ahead = 0; ahead < step; ahead += 64) __builtin_prefetch(stored + PREFETCH(SN_BITS_OF(form)) + ahead);
    load_integers(g, stored, form);
    if (SN_COLS_OF(form) == 0) load_scales(g, stored + SN_BITS_OF(form) * SN_PLANE, form, kind);
    return stored + step;
}

/* One tile times a block of input rows: sums (rows, SN_TILE). */
SN_INLINE void tile_rows(const sn_linear *w, const uint8_t *stored, const int8_t *x, int rows, vf *sums,
                         const int form, const int digits) {
    const int64_t bytes = digits * SN_GROUP + (int64_t)sizeof(group_tail);
    const int together = MOST_ROWS == 1 ? 1 : MOST_ROWS / digits;
    tile_group g = {.offset = offset_of(w->kind), .has_minimum = w->kind & SN_MINIMUM};
    memset(sums, 0, sizeof(float) * SN_TILE * (size_t)rows);
    for (int64_t group = 0; group < groups_of(w); group++, x += rows * bytes) {
        stored = load_group(&g, stored, group, form, w->kind);
        for (int v = 0; v < SN_VECTORS; v++)
            for (int quad = 0; quad < QUADS; quad++) g.w[v][quad] = vi_keep(g.w[v][quad]);
        int m = 0;
        for (; m + together <= rows; m += together)
            add_rows(&g, x + m * bytes, sums + m * SN_VECTORS, together, form, digits);
        for (; together > 2 && m + 2 <= rows; m += 2)
            add_rows(&g, x + m * bytes, sums + m * SN_VECTORS, 2, form, digits);
        for (; m < rows; m++) add_rows(&g, x + m * bytes, sums + m * SN_VECTORS, 1, form, digits);
    }
}

/* The same for one row, whose sums stay in registers. */
SN_INLINE void tile_row(const sn_linear *w, const uint8_t *stored, const int8_t *x, vf *sums, const int form,
                        const int digits) {
    tile_group g = {.offset = offset_of(w->kind), .has_minimum = w->kind & SN_MINIMUM};
    vf own[SN_VECTORS];
    for (int v = 0; v < SN_VECTORS; v++) own[v] = vf_set1(0.0f);
    for (int64_t group = 0; group < groups_of(w); group++, x += digits * SN_GROUP + (int64_t)sizeof(group_tail)) {
        stored = load_group(&g, stored, group, form, w->kind);
        add_rows(&g, x, own, 1, form, digits);
    }
    for (int v = 0; v < SN_VECTORS; v++) sums[v] = own[v];
}

typedef void (*tile_kernel)(const sn_linear *, const uint8_t *, const int8_t *, int, vf *);

#define SHARED (1 << 16) /* in a form: SN_COLS_OF(kind) share a scale */
#define KERNEL(name, form, digits)                                                                               \
    static void name##_##digits(const sn_linear *w, const uint8_t *stored, const int8_t *x, int rows, vf *sums) { \
        if (rows == 1)                                                                                            \
            tile_row(w, stored, x, sums, form, digits);                                                           \
        else                                                                                                      \
            tile_rows(w, stored, x, rows, sums, form, digits);                                                    \
    }
#define KERNELS(name, form)                                                     \
    KERNEL(name, form, 1) KERNEL(name, form, 2) KERNEL(name, form, 3)           \
    static const tile_kernel name[3] = {name##_1, name##_2, name##_3};
KERNELS(int8, 8 * SN_BIT)
KERNELS(int8_halves, 8 * SN_BIT | SN_HALVES)
KERNELS(int8_shared, 8 * SN_BIT | SHARED)
KERNELS(int6, 6 * SN_BIT | SN_HALVES)
KERNELS(int5, 5 * SN_BIT)
KERNELS(int4, 4 * SN_BIT)
KERNELS(int4_shared, 4 * SN_BIT | SHARED)
KERNELS(fp4, 4 * SN_BIT | SN_FP4)
KERNELS(iq4, 4 * SN_BIT | SN_IQ4)
KERNELS(int3, 3 * SN_BIT | SN_HALVES)
KERNELS(int2, 2 * SN_BIT | SN_HALVES)

static tile_kernel kernel_of(const sn_linear *w) {
    const tile_kernel *kernels;
    if (SN_COLS_OF(w->kind) != 0) return (SN_BITS_OF(w->kind) == 8 ? int8_shared : int4_shared)[w->variant - 1];
    switch (w->kind & (SN_BITS | SN_TABLE)) {
    case 8 * SN_BIT: kernels = w->kind & SN_HALVES ? int8_halves : int8; break;
    case 6 * SN_BIT: kernels = int6; break;
    case 5 * SN_BIT: kernels = int5; break;
    case 4 * SN_BIT: kernels = int4; break;
    case 4 * SN_BIT | SN_FP4: kernels = fp4; break;
    case 4 * SN_BIT | SN_IQ4: kernels = iq4; break;
    case 3 * SN_BIT: kernels = int3; break;
    default: kernels = int2;
    }
    return kernels[w->variant - 1];
}

void sn_int_run(const sn_linear *w, int64_t n, float *y, int64_t ldy, int32_t accumulate, const void *scratch,
                int32_t first_tile, int32_t end_tile) {
    tile_kernel kernel = kernel_of(w);
    int64_t tile_bytes = sn_tile_bytes(w);
    vf sums[SN_BLOCK_ROWS * SN_VECTORS] __attribute__((aligned(64)));
    for (int64_t block = 0; block < n; block += SN_BLOCK_ROWS) {
        int rows = (int)(n - block < SN_BLOCK_ROWS ? n - block : SN_BLOCK_ROWS);
        const int8_t *x = (const int8_t *)scratch + block * groups_of(w) * group_bytes(w->variant);
        for (int32_t tile = first_tile; tile < end_tile; tile++) {
            kernel(w, (const uint8_t *)w->weights + tile * tile_bytes, x, rows, sums);
            int first = tile * SN_TILE, count = w->rows - first < SN_TILE ? w->rows - first : SN_TILE;
            const float *bias = w->bias ? w->bias + first : NULL;
            for (int m = 0; m < rows; m++) {
                float sum[SN_TILE], *out = y + (block + m) * ldy + first;
                memcpy(sum, sums + m * SN_VECTORS, sizeof sum);
                if (bias)
                    for (int r = 0; r < SN_TILE; r++) sum[r] += bias[r];
                if (accumulate)
                    for (int r = 0; r < count; r++) out[r] += sum[r];
                else
                    memcpy(out, sum, sizeof(float) * (size_t)count);
            }
        }
    }
}
