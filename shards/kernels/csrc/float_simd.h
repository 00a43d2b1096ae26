/* Vectors of floats as wide as the target's registers, for attention and states: AVX-512, AVX2 with FMA, NEON, or what
   the compiler makes of 16 bytes. */
#ifndef SN_FLOAT_SIMD_H
#define SN_FLOAT_SIMD_H

#include <stdint.h>
#include <string.h>

/* SN_PORTABLE keeps to plain C, for tests. The counts are how many queries and vectors attention's large kernels keep in
   registers, and how many vectors of a state's columns. */
#if defined(__AVX512F__) && !defined(SN_PORTABLE)
#define SN_WIDE 512
#include <immintrin.h>
enum { LANES = 16, SCORE_QUERIES = 12, VALUE_QUERIES = 6, VALUE_VECTORS = 4, STATE_VECTORS = 4 };
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && !defined(SN_PORTABLE)
#define SN_WIDE 256
#include <immintrin.h>
enum { LANES = 8, SCORE_QUERIES = 4, VALUE_QUERIES = 6, VALUE_VECTORS = 2, STATE_VECTORS = 4 };
#else
#define SN_WIDE 128
#if defined(__ARM_NEON) && defined(__aarch64__) && !defined(SN_PORTABLE)
#define SN_NEON
#include <arm_neon.h>
#endif
enum { LANES = 4, SCORE_QUERIES = 4, VALUE_QUERIES = 6, VALUE_VECTORS = 4, STATE_VECTORS = 8 };
#endif

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#define UNROLL _Pragma("GCC unroll 16")
#define PREFETCH(p) __builtin_prefetch((p), 0, 2)

typedef float vfloat __attribute__((vector_size(4 * LANES)));
typedef int32_t vint __attribute__((vector_size(4 * LANES)));
typedef uint32_t vuint __attribute__((vector_size(4 * LANES)));
typedef float loose_vfloat __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE vfloat load(const float *p) { return *(const loose_vfloat *)p; }
INLINE void store(float *p, vfloat x) { *(loose_vfloat *)p = x; }

#if SN_WIDE == 512
#define LANE_NUMBERS ((vint){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
INLINE vfloat splat(float x) { return (vfloat)_mm512_set1_ps(x); }
INLINE vint splat_int(int32_t x) { return (vint)_mm512_set1_epi32(x); }
INLINE vfloat fmadd(vfloat a, vfloat b, vfloat c) { return (vfloat)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE vfloat maximum(vfloat a, vfloat b) { return (vfloat)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE float largest_lane(vfloat x) { return _mm512_reduce_max_ps((__m512)x); }
INLINE vfloat from_halves(const uint16_t *p)
{
    return (vfloat)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
INLINE vfloat from_bfloats(const uint16_t *p)
{
    return (vfloat)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
}
INLINE vfloat from_bytes(const int8_t *p)
{
    return (vfloat)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
#elif SN_WIDE == 256
#define LANE_NUMBERS ((vint){0, 1, 2, 3, 4, 5, 6, 7})
INLINE vfloat splat(float x) { return (vfloat)_mm256_set1_ps(x); }
INLINE vint splat_int(int32_t x) { return (vint)_mm256_set1_epi32(x); }
INLINE vfloat fmadd(vfloat a, vfloat b, vfloat c) { return (vfloat)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE vfloat maximum(vfloat a, vfloat b) { return (vfloat)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE float largest_lane(vfloat x)
{
    __m128 y = _mm_max_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}
INLINE vfloat from_halves(const uint16_t *p) { return (vfloat)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE vfloat from_bfloats(const uint16_t *p)
{
    return (vfloat)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
}
INLINE vfloat from_bytes(const int8_t *p)
{
    return (vfloat)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
#else
#define LANE_NUMBERS ((vint){0, 1, 2, 3})
INLINE vfloat splat(float x) { return (vfloat){x, x, x, x}; }
INLINE vint splat_int(int32_t x) { return (vint){x, x, x, x}; }
INLINE vfloat maximum(vfloat a, vfloat b)
{
    vint larger = a > b;
    return (vfloat)((larger & (vint)a) | (~larger & (vint)b));
}
INLINE float largest_lane(vfloat x)
{
    float a = x[0] > x[1] ? x[0] : x[1], b = x[2] > x[3] ? x[2] : x[3];
    return a > b ? a : b;
}
#ifdef SN_NEON
INLINE vfloat fmadd(vfloat a, vfloat b, vfloat c) { return vfmaq_f32(c, a, b); }
INLINE vfloat from_halves(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
INLINE vfloat from_bfloats(const uint16_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
#else
INLINE vfloat fmadd(vfloat a, vfloat b, vfloat c)
{
#ifdef __FP_FAST_FMAF
    for (int i = 0; i < LANES; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#else
    return a * b + c;
#endif
}
#define SN_SOFT_HALVES
INLINE vfloat from_bfloats(const uint16_t *p)
{
    return (vfloat)((vuint){p[0], p[1], p[2], p[3]} << 16);
}
#endif
INLINE vfloat from_bytes(const int8_t *p) { return (vfloat){p[0], p[1], p[2], p[3]}; }
#endif

/* float16 to float32, by the bits. */
INLINE float from_half(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff, bits;
    if (rest >= 0x7c00)
        bits = 0x7f800000u | (rest & 0x3ff) << 13;
    else if (rest >= 0x400)
        bits = (rest << 13) + (112u << 23);
    else {
        float small = (float)rest * 0x1p-24f;
        memcpy(&bits, &small, 4);
    }
    bits |= sign;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

#ifdef SN_SOFT_HALVES
INLINE vfloat from_halves(const uint16_t *p)
{
    return (vfloat){from_half(p[0]), from_half(p[1]), from_half(p[2]), from_half(p[3])};
}
#endif

INLINE vfloat multiply(vfloat a, vfloat b) { return a * b; }
INLINE vfloat pick(vint mask, vfloat yes, vfloat no) { return (vfloat)((mask & (vint)yes) | (~mask & (vint)no)); }

INLINE float fmadd_one(float a, float b, float c)
{
#if SN_WIDE > 128 || defined(__FP_FAST_FMAF)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

/* Element i of an array of SN_KV_... elements. */
INLINE float widen_one(int dtype, const void *from, int64_t i)
{
    if (dtype == 0) return ((const float *)from)[i];
    if (dtype == 2) return from_half(((const uint16_t *)from)[i]);
    if (dtype == 3) return ((const int8_t *)from)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)from)[i] << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* Elements i to i + LANES. */
INLINE vfloat widen(const int dtype, const void *from, int64_t i)
{
    if (dtype == 0) return load((const float *)from + i);
    if (dtype == 2) return from_halves((const uint16_t *)from + i);
    if (dtype == 3) return from_bytes((const int8_t *)from + i);
    return from_bfloats((const uint16_t *)from + i);
}

/* 2^x for x <= 0, at most 1.5 units in the last place off; 0 below -126, NaN for NaN, anything above 0. x = n + r,
   |r| <= 1/2; 2^r by a polynomial of degree 6 (minimax of the relative error, 2e-9; exact at 0). */
INLINE vfloat exp2_of(vfloat x)
{
    vfloat n = (x + 12582912.0f) - 12582912.0f; /* 1.5 * 2^23 rounds to an integer */
    vfloat r = x - n;
    vfloat p = splat(0x1.41fbbcp-13f);
    p = fmadd(p, r, splat(0x1.5f3e54p-10f));
    p = fmadd(p, r, splat(0x1.3b2d4cp-7f));
    p = fmadd(p, r, splat(0x1.c6aee8p-5f));
    p = fmadd(p, r, splat(0x1.ebfbdcp-3f));
    p = fmadd(p, r, splat(0x1.62e430p-1f));
    p = fmadd(p, r, splat(1.0f));
    vuint exponent = ((vuint)(x + 12582912.0f) << 23) + (127u << 23);
    vfloat y = p * (vfloat)exponent;
    return pick(x < -126.0f, splat(0.0f), y);
}

/* exp(x) for x <= 0: the rounding of x / ln 2 makes it up to |x| 2^-24 off. 0 below -87.3, NaN for NaN. */
INLINE vfloat exp_of(vfloat x) { return exp2_of(x * 1.44269504088896341f); }

/* 1 / (1 + exp(-x)), by exp(-|x|). */
INLINE vfloat sigmoid_of(vfloat x)
{
    vfloat e = exp_of((vfloat)((vint)x | splat_int(INT32_MIN)));
    return pick(x < splat(0.0f), e, splat(1.0f)) / (1.0f + e);
}

/* ln(1 + exp(x)) = max(x, 0) + ln(1 + e), e = exp(-|x|); and ln(1 + e) = 2 artanh(s), s = e / (2 + e) <= 1/3, by the
   terms of artanh's series up to s^13: the rest is below 2^-26 of it. 0 where exp(x) is, NaN for NaN. */
INLINE vfloat softplus_of(vfloat x)
{
    vfloat e = exp_of((vfloat)((vint)x | splat_int(INT32_MIN))), s = e / (2.0f + e), square = s * s;
    vfloat p = splat(1.0f / 13.0f);
    for (int n = 11; n > 0; n -= 2) p = fmadd(p, square, splat(1.0f / (float)n));
    return pick(x < splat(0.0f), splat(0.0f), x) + 2.0f * s * p;
}

/* The first n of LANES, which may be more; then zeros. */
INLINE vfloat load_some(const float *p, int64_t n)
{
    if (n >= LANES) return load(p);
    float held[LANES] = {0};
    memcpy(held, p, sizeof(float) * (size_t)n);
    return load(held);
}

INLINE void store_some(float *p, vfloat x, int64_t n)
{
    if (n >= LANES)
        store(p, x);
    else
        memcpy(p, &x, sizeof(float) * (size_t)n);
}

/* tanh(x), at most 2 units in the last place off; NaN for NaN. By Cephes' tanhf's polynomial where |x| is small, else
   from exp(-2 |x|). */
INLINE vfloat tanh_of(vfloat x)
{
    vint sign = (vint)x & splat_int(INT32_MIN);
    vfloat size = (vfloat)((vint)x ^ sign), square = multiply(x, x);
    vfloat p = splat(-5.70498872745e-3f);
    p = fmadd(p, square, splat(2.06390887954e-2f));
    p = fmadd(p, square, splat(-5.37397155531e-2f));
    p = fmadd(p, square, splat(1.33314422036e-1f));
    p = fmadd(p, square, splat(-3.33332819422e-1f));
    vfloat small = fmadd(multiply(p, square), x, x);
    vfloat e = exp2_of(multiply(size, splat(-2.88539008177792681472f))); /* -2 log2 e */
    vfloat large = (splat(1.0f) - e) / (splat(1.0f) + e);
    return pick(size < splat(0.625f), small, (vfloat)((vint)large | sign));
}

/* Four rows of four floats to four columns. */
INLINE void transpose_4(const float *from, int64_t from_row, float *to, int64_t to_row)
{
    typedef float quad __attribute__((vector_size(16)));
    typedef float loose_quad __attribute__((vector_size(16), aligned(4), may_alias));
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
    typedef int32_t places __attribute__((vector_size(16)));
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (places){__VA_ARGS__})
#endif
    quad row[4], pair[4];
    for (int i = 0; i < 4; i++) row[i] = *(const loose_quad *)(from + i * from_row);
    pair[0] = SHUFFLE(row[0], row[1], 0, 4, 1, 5);
    pair[1] = SHUFFLE(row[2], row[3], 0, 4, 1, 5);
    pair[2] = SHUFFLE(row[0], row[1], 2, 6, 3, 7);
    pair[3] = SHUFFLE(row[2], row[3], 2, 6, 3, 7);
    for (int i = 0; i < 4; i += 2) {
        *(loose_quad *)(to + i * to_row) = SHUFFLE(pair[i], pair[i + 1], 0, 1, 4, 5);
        *(loose_quad *)(to + (i + 1) * to_row) = SHUFFLE(pair[i], pair[i + 1], 2, 3, 6, 7);
    }
#undef SHUFFLE
}

/* Rounds to nearest even. */
INLINE uint16_t to_bfloat16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

/* Rounds to nearest even; what is larger than 65504 becomes 65504. */
INLINE uint16_t to_half(float x)
{
    uint32_t bits, sign;
    memcpy(&bits, &x, 4);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (bits > 0x477fe000) return (uint16_t)(sign | 0x7bff);
    if (bits < 0x38800000) { /* subnormal: adding 0.5 leaves the rounded value in the low bits */
        float magnitude;
        memcpy(&magnitude, &bits, 4);
        magnitude += 0.5f;
        memcpy(&bits, &magnitude, 4);
        return (uint16_t)(sign | (bits - 0x3f000000));
    }
    return (uint16_t)(sign | ((bits + 0xfff + (bits >> 13 & 1) - 0x38000000) >> 13));
}

/* LANES floats to float16 as to_half does. */
INLINE void to_halves(const float *from, uint16_t *to)
{
#if SN_WIDE == 512
    __m512 x = _mm512_loadu_ps(from), most = _mm512_set1_ps(65504.0f);
    x = _mm512_max_ps(_mm512_sub_ps(_mm512_setzero_ps(), most), _mm512_min_ps(most, x)); /* NaN stays */
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif SN_WIDE == 256
    __m256 x = _mm256_loadu_ps(from), most = _mm256_set1_ps(65504.0f);
    x = _mm256_max_ps(_mm256_sub_ps(_mm256_setzero_ps(), most), _mm256_min_ps(most, x));
    _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < LANES; i++) to[i] = to_half(from[i]);
#endif
}

#endif
