/* The vector operations that the linear kernels are written in, for each instruction set.
 *
 * vi: SN_LANES int32; vf: SN_LANES float. dot4(acc, w, x, small): acc[l] += sum of w's bytes 4l..4l+3 times x's four
 * signed bytes, exactly. w's bytes are unsigned, or signed where SN_INT8_OFFSET is 0; `small`: they are 0..63.
 * merge(a, b, mask): a | (b & mask).
 * shl(a, bits): each lane to the left, or, where negative, to the right, as if unsigned.
 * load_u8(p): SN_LANES bytes, each in a lane.
 * lookup(table, a): the table's byte for each byte of a, which is 0..15.
 * load_e4m3(p, even, odd): 2 * SN_LANES pairs of floats of eight bits to two vectors of the first and two of the second
 * ones, times 1/256: a float16 has their bits in the same order, with one bit of exponent more.
 * keep(a): a, which stays in its register while several rows use it, instead of being made again for each.
 * Every set gives the same bits. SN_PORTABLE forces the plain one, for tests.
 */
#ifndef SN_LINEAR_SIMD_H
#define SN_LINEAR_SIMD_H

#include <stdint.h>
#include <string.h>

#include "sn.h"

#define SN_INLINE static inline __attribute__((always_inline))

SN_INLINE float sn_float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

SN_INLINE int32_t sn_dword(const int8_t *p) {
    int32_t value;
    memcpy(&value, p, 4);
    return value;
}

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && !defined(SN_PORTABLE)
#include <immintrin.h>
#define SN_LANES 16
#define SN_INT8_OFFSET 128
#define SN_REGISTERS 32
typedef __m512i vi;
typedef __m512 vf;
SN_INLINE vi vi_load(const void *p) { return _mm512_loadu_si512(p); }
SN_INLINE vi vi_set1(int32_t a) { return _mm512_set1_epi32(a); }
SN_INLINE vi vi_keep(vi a) {
    __asm__("" : "+v"(a));
    return a;
}
SN_INLINE vi vi_and(vi a, vi b) { return _mm512_and_si512(a, b); }
SN_INLINE vi vi_mul(vi a, vi b) { return _mm512_mullo_epi32(a, b); }
SN_INLINE vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
SN_INLINE vi vi_merge(vi a, vi b, vi mask) { return _mm512_ternarylogic_epi32(a, b, mask, 0xf8); }
SN_INLINE vi vi_shl(vi a, const int bits) {
    return bits < 0 ? _mm512_srli_epi32(a, (unsigned)-bits) : _mm512_slli_epi32(a, (unsigned)bits);
}
SN_INLINE vi vi_lookup(const uint8_t *table, vi a) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table)), a);
}
SN_INLINE vi vi_flip_signs(vi a) { return _mm512_xor_si512(a, _mm512_set1_epi8(-128)); }
SN_INLINE vi vi_shl8_add(vi a, vi b) { return _mm512_add_epi32(_mm512_slli_epi32(a, 8), b); }
SN_INLINE vi vi_dot4(vi acc, vi w, int32_t x, const int small) {
    (void)small;
    return _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x));
}
SN_INLINE vf vi_float(vi a) { return _mm512_cvtepi32_ps(a); }
SN_INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
SN_INLINE void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
SN_INLINE vf vf_set1(float a) { return _mm512_set1_ps(a); }
SN_INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
SN_INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
SN_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
SN_INLINE vf vf_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
SN_INLINE void vf_load_e4m3(const uint8_t *p, vf *even, vf *odd) {
    const __m512i mask = _mm512_set1_epi16((short)0xbf80), w = _mm512_loadu_si512(p);
    __m512i first = _mm512_and_si512(_mm512_srai_epi16(_mm512_slli_epi16(w, 8), 1), mask);
    __m512i second = _mm512_and_si512(_mm512_srai_epi16(w, 1), mask);
    even[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(first));
    even[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(first, 1));
    odd[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(second));
    odd[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(second, 1));
}
SN_INLINE vi vi_load_u8(const uint8_t *p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
}
SN_INLINE vf vf_load_bf16(const uint16_t *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && !defined(SN_PORTABLE)
#include <immintrin.h>
#define SN_LANES 8
#define SN_INT8_OFFSET 128
#define SN_REGISTERS 16
typedef __m256i vi;
typedef __m256 vf;
SN_INLINE vi vi_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
SN_INLINE vi vi_set1(int32_t a) { return _mm256_set1_epi32(a); }
SN_INLINE vi vi_keep(vi a) { return a; } /* there are too few registers */
SN_INLINE vi vi_and(vi a, vi b) { return _mm256_and_si256(a, b); }
SN_INLINE vi vi_mul(vi a, vi b) { return _mm256_mullo_epi32(a, b); }
SN_INLINE vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
SN_INLINE vi vi_merge(vi a, vi b, vi mask) { return _mm256_or_si256(a, _mm256_and_si256(b, mask)); }
SN_INLINE vi vi_shl(vi a, const int bits) {
    return bits < 0 ? _mm256_srli_epi32(a, -bits) : _mm256_slli_epi32(a, bits);
}
SN_INLINE vi vi_lookup(const uint8_t *table, vi a) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table)), a);
}
SN_INLINE vi vi_flip_signs(vi a) { return _mm256_xor_si256(a, _mm256_set1_epi8(-128)); }
SN_INLINE vi vi_shl8_add(vi a, vi b) { return _mm256_add_epi32(_mm256_slli_epi32(a, 8), b); }
SN_INLINE vi vi_dot4(vi acc, vi w, int32_t x, const int small) {
    __m256i quad = _mm256_set1_epi32(x);
    (void)small;
#if defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(acc, w, quad);
#else
    if (small)
        return _mm256_add_epi32(
            acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, quad), _mm256_set1_epi16(1)));
    /* vpmaddubsw would saturate: even and odd bytes as 16-bit values instead. */
    __m256i even = _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(255)),
                                     _mm256_srai_epi16(_mm256_slli_epi16(quad, 8), 8));
    __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(w, 8), _mm256_srai_epi16(quad, 8));
    return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
#endif
}
SN_INLINE vf vi_float(vi a) { return _mm256_cvtepi32_ps(a); }
SN_INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
SN_INLINE void vf_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
SN_INLINE vf vf_set1(float a) { return _mm256_set1_ps(a); }
SN_INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
SN_INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
SN_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
SN_INLINE vf vf_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
SN_INLINE void vf_load_e4m3(const uint8_t *p, vf *even, vf *odd) {
    const __m256i mask = _mm256_set1_epi16((short)0xbf80), w = _mm256_loadu_si256((const __m256i *)p);
    __m256i first = _mm256_and_si256(_mm256_srai_epi16(_mm256_slli_epi16(w, 8), 1), mask);
    __m256i second = _mm256_and_si256(_mm256_srai_epi16(w, 1), mask);
    even[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(first));
    even[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(first, 1));
    odd[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(second));
    odd[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(second, 1));
}
SN_INLINE vi vi_load_u8(const uint8_t *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
SN_INLINE vf vf_load_bf16(const uint16_t *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

#elif defined(__ARM_NEON) && defined(__ARM_FEATURE_DOTPROD) && !defined(SN_PORTABLE)
#include <arm_neon.h>
#define SN_LANES 4
#define SN_INT8_OFFSET 0
#define SN_REGISTERS 32
typedef int32x4_t vi;
typedef float32x4_t vf;
SN_INLINE vi vi_load(const void *p) { return vld1q_s32((const int32_t *)p); }
SN_INLINE vi vi_set1(int32_t a) { return vdupq_n_s32(a); }
SN_INLINE vi vi_keep(vi a) { return a; }
SN_INLINE vi vi_and(vi a, vi b) { return vandq_s32(a, b); }
SN_INLINE vi vi_mul(vi a, vi b) { return vmulq_s32(a, b); }
SN_INLINE vi vi_add(vi a, vi b) { return vaddq_s32(a, b); }
SN_INLINE vi vi_merge(vi a, vi b, vi mask) { return vorrq_s32(a, vandq_s32(b, mask)); }
SN_INLINE vi vi_shl(vi a, const int bits) {
    return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(bits)));
}
SN_INLINE vi vi_lookup(const uint8_t *table, vi a) {
    return vreinterpretq_s32_u8(vqtbl1q_u8(vld1q_u8(table), vreinterpretq_u8_s32(a)));
}
SN_INLINE vi vi_flip_signs(vi a) { return veorq_s32(a, vdupq_n_s32((int32_t)0x80808080)); }
SN_INLINE vi vi_shl8_add(vi a, vi b) { return vaddq_s32(vshlq_n_s32(a, 8), b); }
SN_INLINE vi vi_dot4(vi acc, vi w, int32_t x, const int small) {
    (void)small;
    return vdotq_s32(acc, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(vdupq_n_s32(x)));
}
SN_INLINE vf vi_float(vi a) { return vcvtq_f32_s32(a); }
SN_INLINE vf vf_load(const float *p) { return vld1q_f32(p); }
SN_INLINE void vf_store(float *p, vf a) { vst1q_f32(p, a); }
SN_INLINE vf vf_set1(float a) { return vdupq_n_f32(a); }
SN_INLINE vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
SN_INLINE vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
SN_INLINE vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
SN_INLINE vf vf_load_f16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
SN_INLINE void vf_load_e4m3(const uint8_t *p, vf *even, vf *odd) {
    const int16x8_t mask = vdupq_n_s16((int16_t)0xbf80), w = vreinterpretq_s16_u8(vld1q_u8(p));
    int16x8_t first = vandq_s16(vshrq_n_s16(vshlq_n_s16(w, 8), 1), mask), second = vandq_s16(vshrq_n_s16(w, 1), mask);
    even[0] = vcvt_f32_f16(vreinterpret_f16_s16(vget_low_s16(first)));
    even[1] = vcvt_f32_f16(vreinterpret_f16_s16(vget_high_s16(first)));
    odd[0] = vcvt_f32_f16(vreinterpret_f16_s16(vget_low_s16(second)));
    odd[1] = vcvt_f32_f16(vreinterpret_f16_s16(vget_high_s16(second)));
}
SN_INLINE vi vi_load_u8(const uint8_t *p) {
    uint32_t four;
    memcpy(&four, p, 4);
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
}
SN_INLINE vf vf_load_bf16(const uint16_t *p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}

#else
#define SN_LANES 16
#define SN_INT8_OFFSET 128
#define SN_REGISTERS 16
typedef struct { int32_t v[SN_LANES]; } vi;
typedef struct { float v[SN_LANES]; } vf;
#define SN_EACH for (int l = 0; l < SN_LANES; l++)
SN_INLINE vi vi_load(const void *p) { vi r; memcpy(&r, p, sizeof r); return r; }
SN_INLINE vi vi_set1(int32_t a) { vi r; SN_EACH r.v[l] = a; return r; }
SN_INLINE vi vi_keep(vi a) { return a; }
SN_INLINE vi vi_and(vi a, vi b) { SN_EACH a.v[l] &= b.v[l]; return a; }
SN_INLINE vi vi_mul(vi a, vi b) { SN_EACH a.v[l] *= b.v[l]; return a; }
SN_INLINE vi vi_add(vi a, vi b) { SN_EACH a.v[l] += b.v[l]; return a; }
SN_INLINE vi vi_lookup(const uint8_t *table, vi a) {
    uint8_t bytes[sizeof a];
    memcpy(bytes, &a, sizeof a);
    for (unsigned i = 0; i < sizeof a; i++) bytes[i] = table[bytes[i]];
    memcpy(&a, bytes, sizeof a);
    return a;
}
SN_INLINE vi vi_merge(vi a, vi b, vi mask) { SN_EACH a.v[l] |= b.v[l] & mask.v[l]; return a; }
SN_INLINE vi vi_shl(vi a, const int bits) {
    SN_EACH {
        uint32_t value = (uint32_t)a.v[l];
        a.v[l] = (int32_t)(bits < 0 ? value >> -bits : value << bits);
    }
    return a;
}
SN_INLINE vi vi_flip_signs(vi a) { SN_EACH a.v[l] ^= (int32_t)0x80808080; return a; }
SN_INLINE vi vi_shl8_add(vi a, vi b) { SN_EACH a.v[l] = a.v[l] * 256 + b.v[l]; return a; }
SN_INLINE vi vi_dot4(vi acc, vi w, int32_t x, const int small) {
    (void)small;
    int32_t x0 = (int8_t)x, x1 = (int8_t)(x >> 8), x2 = (int8_t)(x >> 16), x3 = (int8_t)(x >> 24);
    SN_EACH {
        uint32_t q = (uint32_t)w.v[l];
        acc.v[l] += (int32_t)(q & 255) * x0 + (int32_t)(q >> 8 & 255) * x1 + (int32_t)(q >> 16 & 255) * x2 +
                    (int32_t)(q >> 24) * x3;
    }
    return acc;
}
SN_INLINE vf vi_float(vi a) { vf r; SN_EACH r.v[l] = (float)a.v[l]; return r; }
SN_INLINE vf vf_load(const float *p) { vf r; memcpy(&r, p, sizeof r); return r; }
SN_INLINE void vf_store(float *p, vf a) { memcpy(p, &a, sizeof a); }
SN_INLINE vf vf_set1(float a) { vf r; SN_EACH r.v[l] = a; return r; }
SN_INLINE vf vf_mul(vf a, vf b) { SN_EACH a.v[l] *= b.v[l]; return a; }
SN_INLINE vf vf_add(vf a, vf b) { SN_EACH a.v[l] += b.v[l]; return a; }
SN_INLINE vf vf_fma(vf a, vf b, vf c) { SN_EACH c.v[l] = __builtin_fmaf(a.v[l], b.v[l], c.v[l]); return c; }
SN_INLINE float sn_half(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    if (rest >= 0x7c00) return sn_float_of_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    float value = sn_float_of_bits(rest << 13) * 0x1p112f; /* moves the exponent's bias; exact */
    return sign ? -value : value;
}
SN_INLINE float sn_e4m3(uint8_t e) { return sn_half((uint16_t)((e & 0x80) << 8 | (e & 0x7f) << 7)); }
SN_INLINE void vf_load_e4m3(const uint8_t *p, vf *even, vf *odd) {
    for (int v = 0; v < 2; v++, p += 2 * SN_LANES) SN_EACH {
        even[v].v[l] = sn_e4m3(p[2 * l]);
        odd[v].v[l] = sn_e4m3(p[2 * l + 1]);
    }
}
SN_INLINE vi vi_load_u8(const uint8_t *p) { vi r; SN_EACH r.v[l] = p[l]; return r; }
SN_INLINE vf vf_load_f16(const uint16_t *p) { vf r; SN_EACH r.v[l] = sn_half(p[l]); return r; }
SN_INLINE vf vf_load_bf16(const uint16_t *p) {
    vf r;
    SN_EACH r.v[l] = sn_float_of_bits((uint32_t)p[l] << 16);
    return r;
}
#endif

#define SN_VECTORS (SN_TILE / SN_LANES) /* vectors of a tile's rows */

/* SN_LANES values of `type` (SN_SCALE_...) from element `index` of p. */
SN_INLINE vf vf_load_scale(const void *p, int index, int type) {
    if (type == SN_SCALE_F32) return vf_load((const float *)p + index);
    const uint16_t *half = (const uint16_t *)p + index;
    return type == SN_SCALE_F16 ? vf_load_f16(half) : vf_load_bf16(half);
}

#endif
