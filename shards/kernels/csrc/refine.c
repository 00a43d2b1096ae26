/* The best logits of an output head, exactly: rough ones tell which rows of the file have to be looked at. */
#include <math.h>
#include <string.h>

#include "linear_simd.h"
#include "product.h"

enum { MOST_BEST = 256, TOGETHER = 16, BLOCK = 64, ROWS_OF_A_PART = 8, PARTS_WORTH_WAKING = 64 };

typedef struct {
    const uint8_t *rows; /* of the file; may begin at any address */
    int64_t row_bytes, cols;
    int32_t type; /* SN_F32, SN_F16, SN_BF16 */
    const double *x;
    const int32_t *ids;
    int64_t count;
    float *logits;
} refining;

static void load(const uint8_t *from, int32_t type, float *to) {
    if (type == SN_F32) {
        memcpy(to, from, TOGETHER * sizeof *to);
        return;
    }
    for (int i = 0; i < TOGETHER; i += SN_LANES) {
        const uint16_t *halves = (const uint16_t *)(from + 2 * i);
        vf_store(to + i, type == SN_BF16 ? vf_load_bf16(halves) : vf_load_f16(halves));
    }
}

/* Products of float32 are exact in float64, so that the sum's order shows only beyond float32. */
static float exact(const refining *r, int32_t id) {
    const uint8_t *row = r->rows + id * r->row_bytes;
    int size = r->type == SN_F32 ? 4 : 2;
    double sums[TOGETHER] = {0};
    for (int64_t c = 0; c < r->cols; c += TOGETHER) {
        float w[TOGETHER];
        load(row + c * size, r->type, w);
        for (int i = 0; i < TOGETHER; i++) sums[i] += (double)w[i] * r->x[c + i];
    }
    double sum = 0;
    for (int i = 0; i < TOGETHER; i++) sum += sums[i];
    return (float)sum;
}

static void refine_part(void *arg, int32_t first, int32_t end, int32_t thread) {
    const refining *r = arg;
    (void)thread;
    for (int64_t n = (int64_t)first * ROWS_OF_A_PART; n < (int64_t)end * ROWS_OF_A_PART && n < r->count; n++)
        r->logits[r->ids[n]] = exact(r, r->ids[n]);
}

/* A heap of the largest values so far, the least of them first. */
static void sift(float *heap, int size, float value) {
    int at = 0;
    for (int child = 1; child < size; child = 2 * at + 1) {
        if (child + 1 < size && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= value) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = value;
}

typedef struct {
    const float *logits, *bounds;
    float norm, of_output;
} estimate;

static inline float off(const estimate *e, int64_t i) {
    return e->bounds[i] * e->norm + e->of_output * fabsf(e->logits[i]);
}

/* Whether one of BLOCK logits from i on can be above the floor for sure. */
static int any_sure(const estimate *e, int64_t i, float floor) {
    int32_t found[TOGETHER] = {0};
    for (int64_t n = i; n < i + BLOCK; n += TOGETHER)
        for (int j = 0; j < TOGETHER; j++) found[j] |= e->logits[n + j] - off(e, n + j) > floor;
    for (int j = 1; j < TOGETHER; j++) found[0] |= found[j];
    return found[0];
}

/* Whether one of BLOCK logits from i on can reach the threshold; what is not a number is above everything. */
static int any_possible(const estimate *e, int64_t i, float threshold) {
    int32_t found[TOGETHER] = {0};
    for (int64_t n = i; n < i + BLOCK; n += TOGETHER)
        for (int j = 0; j < TOGETHER; j++) found[j] |= !(e->logits[n + j] + off(e, n + j) < threshold);
    for (int j = 1; j < TOGETHER; j++) found[0] |= found[j];
    return found[0];
}

/* logits (vocab), rough, are off by bounds[i] * norm + of_output * |logits[i]| at most. Puts the exact ones in
 * the place of all that can be among the `best` largest; of all where that is more than `most`.
 * x (cols, a multiple of 16): the input. ids: room for vocab. Returns how many were computed. pool may be NULL. */
int64_t sn_refine(float *logits, int64_t vocab, const float *bounds, float norm, float of_output, int32_t best,
                  int64_t most, const uint8_t *rows, int64_t row_bytes, int32_t type, const double *x,
                  int64_t cols, int32_t *ids, sn_pool *pool) {
    float heap[MOST_BEST];
    if (best > MOST_BEST) best = MOST_BEST;
    if (best > vocab) best = (int32_t)vocab;
    for (int i = 0; i < best; i++) heap[i] = -INFINITY;
    estimate e = {logits, bounds, norm, of_output};
    for (int64_t first = 0; first < vocab; first += BLOCK) {
        int64_t end = first + BLOCK < vocab ? first + BLOCK : vocab;
        if (end == first + BLOCK && !any_sure(&e, first, heap[0])) continue;
        for (int64_t i = first; i < end; i++) {
            float sure = logits[i] - off(&e, i);
            if (sure > heap[0]) sift(heap, best, sure);
        }
    }
    int64_t count = 0;
    for (int64_t first = 0; first < vocab; first += BLOCK) {
        int64_t end = first + BLOCK < vocab ? first + BLOCK : vocab;
        if (end == first + BLOCK && !any_possible(&e, first, heap[0])) continue;
        for (int64_t i = first; i < end; i++)
            if (!(logits[i] + off(&e, i) < heap[0])) ids[count++] = (int32_t)i;
    }
    if (count > most)
        for (count = 0; count < vocab; count++) ids[count] = (int32_t)count;
    refining r = {rows, row_bytes, cols, type, x, ids, count, logits};
    sn_pool_run(pool, refine_part, &r, (int32_t)((count + ROWS_OF_A_PART - 1) / ROWS_OF_A_PART), PARTS_WORTH_WAKING);
    sn_pool_rest(pool);
    return count;
}
