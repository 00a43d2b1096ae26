/* Vectors of 16 floats, and exp() of them: the same bits in whatever lane. */
#ifndef SN_EXP_H
#define SN_EXP_H

#include <stdint.h>

#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#endif

/* 64-byte vectors are passed differently with and without AVX-512; these functions are only ever inlined. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

typedef float sn_v16 __attribute__((vector_size(64)));
typedef int32_t sn_v16i __attribute__((vector_size(64)));
/* The same with the alignment of a float: for loads and stores anywhere in a row. */
typedef float sn_v16u __attribute__((vector_size(64), aligned(4), may_alias));

static inline sn_v16 sn_splat16(float x) { return x - (sn_v16){0}; }

static inline sn_v16 sn_load16(const float *p) { return *(const sn_v16u *)p; }

static inline void sn_store16(float *p, sn_v16 x) { *(sn_v16u *)p = x; }

/* yes where the mask is -1, no where it is 0. */
static inline sn_v16 sn_select16(sn_v16i mask, sn_v16 yes, sn_v16 no)
{
    return (sn_v16)((mask & (sn_v16i)yes) | (~mask & (sn_v16i)no));
}

/* a * b + c, rounded once where the CPU does that in one instruction. */
static inline sn_v16 sn_fma16(sn_v16 a, sn_v16 b, sn_v16 c)
{
#if defined(__AVX512F__)
    return (sn_v16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    union { sn_v16 all; __m256 half[2]; } x = {a}, y = {b}, z = {c};
    z.half[0] = _mm256_fmadd_ps(x.half[0], y.half[0], z.half[0]);
    z.half[1] = _mm256_fmadd_ps(x.half[1], y.half[1], z.half[1]);
    return z.all;
#elif defined(__ARM_FEATURE_FMA)
    sn_v16 out;
    for (int lane = 0; lane < 16; lane++)
        out[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
    return out;
#else
    return a * b + c;
#endif
}

/* exp(x), at most 1.5 units in the last place off for -87.33 <= x <= 88.37. Below: 0, also for -inf. Above: as
   at 88.37 (2.4e38). A NaN gives some finite number: callers multiply by what was NaN.
   x = n ln 2 + r, |r| <= ln 2 / 2; exp(r) by the polynomial of Cephes' expf; times 2^n through the exponent. */
static inline sn_v16 sn_exp16(sn_v16 x)
{
    const float highest = 88.37f, lowest = -87.33f, round = 12582912.0f; /* 1.5 * 2^23: adding it rounds */
    sn_v16i below = x < lowest;
    x = sn_select16(x > highest, sn_splat16(highest), x);
    x = sn_select16(x >= lowest, x, sn_splat16(lowest));
    sn_v16 n = sn_fma16(x, sn_splat16(1.44269504088896341f), sn_splat16(round)) - round;
    sn_v16 r = sn_fma16(n, sn_splat16(-0.693359375f), x); /* exact: the constant has few bits */
    r = sn_fma16(n, sn_splat16(2.12194440e-4f), r);
    sn_v16 p = sn_fma16(r, sn_splat16(1.9875691500e-4f), sn_splat16(1.3981999507e-3f));
    p = sn_fma16(p, r, sn_splat16(8.3334519073e-3f));
    p = sn_fma16(p, r, sn_splat16(4.1665795894e-2f));
    p = sn_fma16(p, r, sn_splat16(1.6666665459e-1f));
    p = sn_fma16(p, r, sn_splat16(5.0000001201e-1f));
    p = sn_fma16(p, r * r, r) + 1.0f;
    sn_v16i exponent = __builtin_convertvector(n, sn_v16i) << 23;
    sn_v16 e = (sn_v16)((sn_v16i)p + exponent);
    return sn_select16(below, sn_splat16(0.0f), e);
}

#endif
