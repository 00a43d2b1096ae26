/* The int8 wire codec of int8.py, which has the format: the same bytes and the same verdicts, in one pass
   without temporaries. For little-endian machines. Rows of a payload lie at any address. */

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { OUTLIERS = 4, LANES = 16 };

enum { OK = 0, NOT_FINITE = 1, BAD_SCALE = 2, BAD_VALUE = 3, BAD_CHANNEL = 4 };

static int64_t outliers_of(int64_t hidden)
{
    return hidden < OUTLIERS ? hidden : OUTLIERS;
}

/* Magnitudes of floats order like their bits without the sign; infinity and NaN are above all others. */
static uint32_t magnitude(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits & 0x7fffffff;
}

static float from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* The largest OUTLIERS + 1 magnitudes plus one, in falling order, the lower channel first among equals; 0 where
   there are no more values. Plus one: a zero counts as a value. */
typedef struct ranking {
    uint32_t size[OUTLIERS + 1];
    int32_t channel[OUTLIERS + 1];
} ranking;

/* A size that at least OUTLIERS + 1 of the row's values reach, close to the last of them: the largest value of
   each lane ranks among those of the other lanes. `whole`: a multiple of LANES. */
static uint32_t reached(const float *x, int64_t whole)
{
    uint32_t top[LANES] = {0}, at_least[LANES] = {0}, bound = 0;
    for (int64_t first = 0; first < whole; first += LANES)
        for (int i = 0; i < LANES; i++) {
            uint32_t size = magnitude(x[first + i]) + 1;
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

static void insert(ranking *best, uint32_t size, int64_t channel)
{
    int at = OUTLIERS;
    for (; at > 0 && best->size[at - 1] < size; at--) {
        best->size[at] = best->size[at - 1];
        best->channel[at] = best->channel[at - 1];
    }
    best->size[at] = size;
    best->channel[at] = (int32_t)channel;
}

static void rank(const float *x, int64_t hidden, ranking *best)
{
    memset(best, 0, sizeof *best);
    int64_t whole = hidden / LANES * LANES, channel = 0;
    uint32_t bound = reached(x, whole);
    for (; channel < whole; channel += LANES) {
        uint32_t larger = 0;
        for (int i = 0; i < LANES; i++) larger |= magnitude(x[channel + i]) + 1 >= bound;
        if (!larger) continue;
        for (int i = 0; i < LANES; i++) {
            uint32_t size = magnitude(x[channel + i]) + 1;
            if (size > best->size[OUTLIERS]) insert(best, size, channel + i);
        }
        if (best->size[OUTLIERS] >= bound) bound = best->size[OUTLIERS] + 1; /* only what is larger counts now */
    }
    for (; channel < hidden; channel++) {
        uint32_t size = magnitude(x[channel]) + 1;
        if (size > best->size[OUTLIERS]) insert(best, size, channel);
    }
}

static int encode_row(const float *x, int64_t hidden, uint8_t *out)
{
    int k = (int)outliers_of(hidden);
    ranking best;
    rank(x, hidden, &best);
    if (best.size[0] > 0x7f800000) return NOT_FINITE;

    int32_t channels[OUTLIERS];
    for (int i = 0; i < k; i++) { /* ascending */
        int at = i;
        for (; at > 0 && channels[at - 1] > best.channel[i]; at--) channels[at] = channels[at - 1];
        channels[at] = best.channel[i];
    }
    float rest = best.size[OUTLIERS] > 0 ? from_bits(best.size[OUTLIERS] - 1) : 0.0f;
    float scale = (rest < 1e-30f ? 1e-30f : rest) / 127.0f;
    float inverse = 1.0f / scale;

    memcpy(out, &scale, 4);
    int8_t *q = (int8_t *)(out + 4 + 6 * k);
    for (int64_t i = 0; i < hidden; i++) {
        float y = x[i] * inverse;
        y = y > 127.0f ? 127.0f : y; /* outliers: not representable otherwise */
        y = y < -127.0f ? -127.0f : y;
        q[i] = (int8_t)(int32_t)rintf(y);
    }
    for (int i = 0; i < k; i++) {
        uint16_t channel = (uint16_t)channels[i];
        memcpy(out + 4 + 2 * i, &channel, 2);
        memcpy(out + 4 + 2 * k + 4 * i, x + channels[i], 4);
        q[channels[i]] = 0;
    }
    return OK;
}

/* x: (tokens, hidden) floats, rows `stride` floats apart. */
int32_t swarm_int8_encode(const float *x, int64_t stride, int64_t tokens, int64_t hidden, uint8_t *out)
{
    int64_t row_bytes = 4 + 6 * outliers_of(hidden) + hidden;
    for (int64_t row = 0; row < tokens; row++) {
        int verdict = encode_row(x + row * stride, hidden, out + row * row_bytes);
        if (verdict != OK) return verdict;
    }
    return OK;
}

/* The first complaint about any row, in the order of the codes. `limit`: the largest magnitude allowed. */
static int check(const uint8_t *payload, int64_t tokens, int64_t hidden, float limit)
{
    int64_t k = outliers_of(hidden), row_bytes = 4 + 6 * k + hidden;
    int bad_scale = 0, bad_value = 0, bad_channel = 0;
    for (int64_t row = 0; row < tokens; row++, payload += row_bytes) {
        float scale, value;
        memcpy(&scale, payload, 4);
        bad_scale |= !(scale >= 0 && scale <= limit / 128.0f); /* NaN too */
        int32_t before = -1;
        for (int64_t i = 0; i < k; i++) {
            uint16_t channel;
            memcpy(&channel, payload + 4 + 2 * i, 2);
            bad_channel |= channel <= before || channel >= hidden;
            before = channel;
            memcpy(&value, payload + 4 + 2 * k + 4 * i, 4);
            bad_value |= !(fabsf(value) <= limit);
        }
    }
    return bad_scale ? BAD_SCALE : bad_value ? BAD_VALUE : bad_channel ? BAD_CHANNEL : OK;
}

/* payload: exactly `tokens` rows. out: (tokens, hidden) floats; untouched unless the verdict is OK. */
int32_t swarm_int8_decode(const uint8_t *payload, int64_t tokens, int64_t hidden, float limit, float *out)
{
    int verdict = check(payload, tokens, hidden, limit);
    if (verdict != OK) return verdict;
    int64_t k = outliers_of(hidden), row_bytes = 4 + 6 * k + hidden;
    for (int64_t row = 0; row < tokens; row++, payload += row_bytes, out += hidden) {
        float scale;
        memcpy(&scale, payload, 4);
        const int8_t *q = (const int8_t *)(payload + 4 + 6 * k);
        for (int64_t i = 0; i < hidden; i++) out[i] = (float)q[i] * scale;
        for (int64_t i = 0; i < k; i++) {
            uint16_t channel;
            memcpy(&channel, payload + 4 + 2 * i, 2);
            memcpy(out + channel, payload + 4 + 2 * k + 4 * i, 4);
        }
    }
    return OK;
}
