/* The codecs of packed.py, which has the layout of rows: the same bytes and the same verdicts, in one pass without
   temporaries. For little-endian machines. Rows of a payload lie at any address. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

/* MAX_WIDTH: as in codec.py; MAX_SCALES: as in types.py. */
enum { OUTLIERS = 4, LANES = 16, MAX_WIDTH = 65536, MAX_SCALES = 12288 };

enum { OK = 0, NOT_FINITE = 1, BAD_SCALE = 2, BAD_VALUE = 3, BAD_CHANNEL = 4, NO_FORMAT = 5 };

/* Of codes: int8.py and f8.py have what they stand for. */
enum { INT8 = 0, F8 = 1 };

INLINE float largest_of(int format) { return format == F8 ? 1984.0f : 127.0f; }
INLINE float reach_of(int format) { return format == F8 ? 1984.0f : 128.0f; }

INLINE int64_t outliers_of(int64_t width) { return width < OUTLIERS ? width : OUTLIERS; }

INLINE uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

INLINE float from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* Magnitudes of floats order like their bits without the sign; infinity and NaN are above all others. */
INLINE uint32_t magnitude(float x) { return bits_of(x) & 0x7fffffff; }

/* 2^exponent, of at most 32 either way. */
INLINE float power_of_two(int32_t exponent) { return from_bits((uint32_t)(127 + exponent) << 23); }

/* A value's size is its magnitude plus one: a zero counts as a value. */
INLINE uint32_t size_of(float x) { return magnitude(x) + 1; }

/* The OUTLIERS + 1 values of largest size in falling order, the lower channel first among equals, as numbers that order
   so: a size, then what the channel lacks to 2^32 - 1. 0 where there are no more values. */
typedef struct ranking {
    uint64_t value[OUTLIERS + 1];
} ranking;

INLINE uint32_t ranked_size(uint64_t value) { return (uint32_t)(value >> 32); }
INLINE int32_t ranked_channel(uint64_t value) { return (int32_t)~(uint32_t)value; }

/* A size that at least OUTLIERS + 1 of the row's values reach, close to the last of them: the largest value of
   each lane ranks among those of the other lanes. `whole`: a multiple of LANES. Where there are exponents, the
   values are those of `divided`, which are written on the way. */
INLINE uint32_t reached(const float *x, const int8_t *exponents, float *divided, int64_t whole)
{
    uint32_t top[LANES] = {0}, at_least[LANES] = {0}, bound = 0;
    for (int64_t first = 0; first < whole; first += LANES)
        for (int i = 0; i < LANES; i++) {
            float value = x[first + i];
            if (exponents) divided[first + i] = value *= power_of_two(-exponents[first + i]);
            uint32_t size = size_of(value);
            top[i] = size > top[i] ? size : top[i];
        }
    for (int j = 0; j < LANES; j++)
        for (int i = 0; i < LANES; i++) at_least[i] += top[j] >= top[i];
    for (int i = 0; i < LANES; i++) {
        uint32_t candidate = at_least[i] > OUTLIERS ? top[i] : 0;
        bound = candidate > bound ? candidate : bound;
    }
    return bound;
}

/* Without a branch: which values are large cannot be foreseen. */
INLINE void insert(ranking *best, uint32_t size, int64_t channel)
{
    uint64_t value = (uint64_t)size << 32 | (uint32_t)~(uint32_t)channel;
    for (int at = 0; at <= OUTLIERS; at++) {
        uint64_t before = best->value[at];
        best->value[at] = value > before ? value : before;
        value = value > before ? before : value;
    }
}

/* Which of LANES values have a size of at least `bound`, which is one: a bit for each. */
INLINE uint32_t large_lanes(const float *x, uint32_t bound)
{
#if defined(__AVX512F__)
    __m512i magnitudes = _mm512_and_si512(_mm512_loadu_si512(x), _mm512_set1_epi32(0x7fffffff));
    return _mm512_cmpgt_epi32_mask(magnitudes, _mm512_set1_epi32((int32_t)(bound - 2)));
#elif defined(__AVX2__)
    uint32_t lanes = 0;
    for (int i = 0; i < LANES; i += 8) {
        __m256i bits = _mm256_loadu_si256((const __m256i *)(x + i));
        __m256i magnitudes = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
        __m256i large = _mm256_cmpgt_epi32(magnitudes, _mm256_set1_epi32((int32_t)(bound - 2)));
        lanes |= (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(large)) << i;
    }
    return lanes;
#else
    uint32_t any = 0, lanes = 0;
    for (int i = 0; i < LANES; i++) any |= size_of(x[i]) >= bound;
    for (int i = 0; i < LANES && any; i++) lanes |= (uint32_t)(size_of(x[i]) >= bound) << i;
    return lanes;
#endif
}

/* `bound`: as `reached` gives it. */
INLINE void rank(const float *x, uint32_t bound, int64_t width, ranking *best)
{
    int32_t places[MAX_WIDTH / LANES];
    int64_t whole = width / LANES * LANES, count = 0;
    for (int64_t channel = 0; channel < whole; channel += LANES) {
        places[count] = (int32_t)channel;
        count += large_lanes(x + channel, bound) != 0;
    }
    memset(best, 0, sizeof *best);
    for (int64_t i = 0; i < count; i++) {
        for (uint32_t lanes = large_lanes(x + places[i], bound); lanes; lanes &= lanes - 1) {
            int64_t channel = places[i] + __builtin_ctz(lanes);
            insert(best, size_of(x[channel]), channel);
        }
        uint32_t counts = ranked_size(best->value[OUTLIERS]) + 1; /* only what is larger than the last counts now */
        bound = counts > bound ? counts : bound;
    }
    for (int64_t channel = whole; channel < width; channel++) insert(best, size_of(x[channel]), channel);
}

/* The nearest integer, or the even one where two are as near, of |x| < 2^22: its lower bits. */
INLINE uint32_t nearest(float x) { return bits_of(x + 0x1.8p23f); }

/* The code of y, a value in scales. At outliers, which a code may not reach, any. */
INLINE uint8_t code_of(int format, float y)
{
    if (format == INT8) return (uint8_t)nearest(y);
    float size = fabsf(y);
    size = size > 1984.0f ? 1984.0f : size;
    uint32_t bits = bits_of(size);
    uint32_t normal = ((bits + 0x3ffff + (bits >> 19 & 1)) >> 19) - (130 << 4); /* from 16 on */
    return (uint8_t)((size < 16.0f ? nearest(size) : normal) | bits_of(y) >> 31 << 7);
}

INLINE float value_of(int format, uint8_t code)
{
    if (format == INT8) return (float)(int8_t)code;
    uint32_t size = code & 0x7f;
    uint32_t bits = size < 16 ? bits_of((float)(int32_t)size) : (size + (130 << 4)) << 19;
    return from_bits(bits | (uint32_t)(code & 0x80) << 24);
}

/* What codes stand for, times scale. */
INLINE void scaled_values(int format, const uint8_t *codes, float scale, int64_t width, float *out)
{
    int64_t i = 0;
#if defined(__AVX2__) && defined(__F16C__)
    /* A float16 has an F8's bits in the same order, with two bits of exponent more: it is the value times 2^-18. */
    const float by = scale * 0x1p18f;
    for (; format == F8 && i + 16 <= width; i += 16) {
        __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(codes + i)));
        __m256i halves = _mm256_srai_epi16(_mm256_slli_epi16(wide, 8), 2);
        halves = _mm256_and_si256(halves, _mm256_set1_epi16((short)0x9fc0));
#ifdef __AVX512F__
        _mm512_storeu_ps(out + i, _mm512_mul_ps(_mm512_cvtph_ps(halves), _mm512_set1_ps(by)));
#else
        __m256 low = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
        __m256 high = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
        _mm256_storeu_ps(out + i, _mm256_mul_ps(low, _mm256_set1_ps(by)));
        _mm256_storeu_ps(out + i + 8, _mm256_mul_ps(high, _mm256_set1_ps(by)));
#endif
    }
#endif
    for (; i < width; i++) out[i] = value_of(format, codes[i]) * scale;
}

INLINE int encode_row(int format, const float *x, int64_t width, const int8_t *exponents, uint8_t *out)
{
    int k = (int)outliers_of(width);
    int64_t whole = width / LANES * LANES;
    float divided[MAX_SCALES];
    const float *scaled = exponents ? divided : x;
    uint32_t bound = reached(x, exponents, divided, whole);
    if (exponents)
        for (int64_t i = whole; i < width; i++) divided[i] = x[i] * power_of_two(-exponents[i]);
    ranking best;
    rank(scaled, bound, width, &best);
    if (ranked_size(best.value[0]) > 0x7f800000) return NOT_FINITE;

    int32_t channels[OUTLIERS];
    for (int i = 0; i < k; i++) { /* ascending */
        int32_t at = i, channel = ranked_channel(best.value[i]);
        for (; at > 0 && channels[at - 1] > channel; at--) channels[at] = channels[at - 1];
        channels[at] = channel;
    }
    uint32_t size = ranked_size(best.value[OUTLIERS]);
    float rest = size > 0 ? from_bits(size - 1) : 0.0f;
    float scale = (rest < 1e-30f ? 1e-30f : rest) / largest_of(format);
    float inverse = 1.0f / scale;

    memcpy(out, &scale, 4);
    uint8_t *codes = out + 4 + 6 * k;
    for (int64_t i = 0; i < width; i++) codes[i] = code_of(format, scaled[i] * inverse);
    for (int i = 0; i < k; i++) {
        uint16_t channel = (uint16_t)channels[i];
        memcpy(out + 4 + 2 * i, &channel, 2);
        memcpy(out + 4 + 2 * k + 4 * i, x + channels[i], 4);
        codes[channels[i]] = 0;
    }
    return OK;
}

INLINE int encode(int format, const float *x, int64_t stride, int64_t tokens, int64_t width,
                  const int8_t *exponents, uint8_t *out)
{
    int64_t row_bytes = 4 + 6 * outliers_of(width) + width;
    for (int64_t row = 0; row < tokens; row++, x += stride, out += row_bytes) {
        int verdict = encode_row(format, x, width, exponents, out);
        if (verdict != OK) return verdict;
    }
    return OK;
}

/* x: (tokens, width) floats, rows `stride` floats apart. `exponents`: of the power of two that divides each channel, at
   most MAX_SCALES; NULL: none. */
int32_t swarm_rows_encode(int32_t format, const float *x, int32_t stride, int32_t tokens, int32_t width,
                          const int8_t *exponents, uint8_t *out)
{
    if (format == INT8 && exponents) return encode(INT8, x, stride, tokens, width, exponents, out);
    if (format == INT8) return encode(INT8, x, stride, tokens, width, 0, out);
    if (format == F8 && !exponents) return encode(F8, x, stride, tokens, width, 0, out);
    return NO_FORMAT;
}

/* The first complaint about any row, in the order of the codes. `most`: the largest scale allowed, `limit` the
   largest magnitude. */
static int check(const uint8_t *payload, int64_t tokens, int64_t width, float most, float limit)
{
    int64_t k = outliers_of(width), row_bytes = 4 + 6 * k + width;
    int bad_scale = 0, bad_value = 0, bad_channel = 0;
    for (int64_t row = 0; row < tokens; row++, payload += row_bytes) {
        float scale, value;
        memcpy(&scale, payload, 4);
        bad_scale |= !(scale >= 0 && scale <= most); /* NaN too */
        int32_t before = -1;
        for (int64_t i = 0; i < k; i++) {
            uint16_t channel;
            memcpy(&channel, payload + 4 + 2 * i, 2);
            bad_channel |= channel <= before || channel >= width;
            before = channel;
            memcpy(&value, payload + 4 + 2 * k + 4 * i, 4);
            bad_value |= !(fabsf(value) <= limit);
        }
    }
    return bad_scale ? BAD_SCALE : bad_value ? BAD_VALUE : bad_channel ? BAD_CHANNEL : OK;
}

INLINE int decode(int format, const uint8_t *payload, int64_t tokens, int64_t width, float limit,
                  const int8_t *exponents, float *out)
{
    /* Behind powers of two it is not the scale alone that says how large values are. */
    int verdict = check(payload, tokens, width, exponents ? FLT_MAX : limit / reach_of(format), limit);
    if (verdict != OK) return verdict;
    int64_t k = outliers_of(width), row_bytes = 4 + 6 * k + width;
    uint32_t most = bits_of(limit), beyond = 0;
    int8_t highest = -127;
    if (exponents)
        for (int64_t i = 0; i < width; i++) highest = exponents[i] > highest ? exponents[i] : highest;
    float reach = reach_of(format) * power_of_two(highest);
    for (int64_t row = 0; row < tokens; row++, payload += row_bytes, out += width) {
        float scale;
        memcpy(&scale, payload, 4);
        const uint8_t *codes = payload + 4 + 6 * k;
        if (exponents)
            for (int64_t i = 0; i < width; i++) out[i] = value_of(format, codes[i]) * scale * power_of_two(exponents[i]);
        else
            scaled_values(format, codes, scale, width, out);
        for (int64_t i = 0; i < k; i++) {
            uint16_t channel;
            memcpy(&channel, payload + 4 + 2 * i, 2);
            memcpy(out + channel, payload + 4 + 2 * k + 4 * i, 4);
        }
        if (exponents && !(scale * reach <= limit)) /* else no value of this row can be */
            for (int64_t i = 0; i < width; i++) beyond |= magnitude(out[i]) > most;
    }
    return beyond ? BAD_SCALE : OK;
}

/* payload: exactly `tokens` rows. out: (tokens, width) floats; of no use unless the verdict is OK. */
int32_t swarm_rows_decode(int32_t format, const uint8_t *payload, int32_t tokens, int32_t width, float limit,
                          const int8_t *exponents, float *out)
{
    if (format == INT8 && exponents) return decode(INT8, payload, tokens, width, limit, exponents, out);
    if (format == INT8) return decode(INT8, payload, tokens, width, limit, 0, out);
    if (format == F8 && !exponents) return decode(F8, payload, tokens, width, limit, 0, out);
    return NO_FORMAT;
}
