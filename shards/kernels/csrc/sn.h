/* Linear layers over packed weights: y = x W^T + bias, on the CPU, in C11 with GCC/Clang vector types.
 *
 * Integer weights are multiplied by activations in fixed point: each group of 32 activations has one scale, and
 * every activation is `digits` signed base-256 digits (3: as exact as float32 sums, error 2^-24 of the group's
 * largest; 2: 2^-16; 1: 2^-8). Sums within a group are exact integers and groups are added in order, so an
 * output row's bits depend on its input row and the weights alone: not on the batch, the tile, the thread or
 * the instruction set. Dense weights are multiplied in float32, in one order.
 */
#ifndef SN_H
#define SN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SN_TILE 32  /* output rows of a tile: what one part of the work is */
#define SN_GROUP 32 /* columns that share a scale */
#define SN_BLOCK_ROWS 64 /* input rows whose prepared form and sums stay in the caches while weights go by */

enum {
    SN_F32 = 0,
    SN_F16 = 1,
    SN_BF16 = 2,
    SN_INT8 = 3,  /* groups of 32: weight = q * scale */
    SN_INT4 = 4,  /* groups of 32: weight = q * scale [+ minimum] */
    SN_INT6 = 5,  /* groups of 32 with a scale for 16: weight = (q - 32) * scale; with SN_SCALE_K */
    SN_BASE = 15, /* mask of the above in `kind` */
    SN_SCALE_F32 = 0 << 4,
    SN_SCALE_F16 = 1 << 4,
    SN_SCALE_BF16 = 2 << 4,
    SN_SCALE_K = 3 << 4, /* of GGUF's Q4_K and Q6_K: small integers times a float16 for 8 groups */
    SN_SCALE_TYPE = 3 << 4,
    SN_CENTRED = 1 << 6, /* int4: q - 8 takes q's place */
    SN_MINIMUM = 1 << 7, /* int4: groups have a minimum (with SN_CENTRED: a centre) */
    SN_FP4 = 1 << 8,     /* int4: q is a float of 1 sign bit, 2 of exponent and 1 of fraction; twice its value takes its place */
};

/* `weights` (64-byte aligned, rows padded to SN_TILE, columns to SN_GROUP with zero weights):
 *  dense: [tile][column][32 rows]
 *  int8:  [tile][group]: [2 panels of 16 rows][8 quads of columns][16 rows][4 columns] bytes q + 128, then the
 *         [32 rows] scales
 *  int4:  [tile][group]: [2 panels][4 eights of columns][16 rows][4 bytes], byte b of an eight having column b in
 *         the low and column 4 + b in the high nibble; then [32 rows] scales and, with SN_MINIMUM, [32 rows] minima
 *  Q4_K:  [tile][8 groups]: [32 rows] float16 d, [32] float16 dmin, then for each group the nibbles as above and
 *         [32] bytes scale, [32] bytes minimum: weight = q * (d * scale) - dmin * minimum
 *  Q6_K:  [tile][8 groups]: [32 rows] float16 d, then for each group the lower four bits as the nibbles above,
 *         [2 panels][2 sixteens of columns][16 rows][4 bytes] the upper two, byte b of a sixteen having those of
 *         columns b, 4 + b, 8 + b, 12 + b from its lowest bits on, and [2 sixteens][32] bytes scale + 128
 * `bias`: float32 (padded rows) or NULL.
 */
typedef struct sn_linear {
    int32_t kind;
    int32_t variant; /* integer weights: digits of an activation, 1 to 3; dense: 0 */
    int32_t rows;    /* outputs, as the caller sees them */
    int32_t cols;    /* inputs */
    const void *weights;
    const float *bias;
} sn_linear;

/* Bytes of scratch memory for n input rows, 64-byte aligned by the caller; grows with n. 0 is possible. */
int64_t sn_linear_scratch(const sn_linear *w, int64_t n);

/* Input rows to what the kernels read; once, before the parts run. `x`: n rows of cols, `ldx` floats apart. */
void sn_linear_prepare(const sn_linear *w, const float *x, int64_t ldx, int64_t n, void *scratch);

/* The same for input rows first to end of the n, columns from first_col (a multiple of SN_GROUP) to end_col (another,
 * or all): prepared in parallel. */
void sn_linear_prepare_part(const sn_linear *w, const float *x, int64_t ldx, int64_t n, void *scratch,
                            int64_t first, int64_t end, int64_t first_col, int64_t end_col);

/* Independent parts of the product: tiles of SN_TILE output rows. */
int32_t sn_linear_parts(const sn_linear *w);

/* Output tiles first_tile to end_tile of y (n rows, `ldy` floats apart), written or, with `accumulate`, added to. */
void sn_linear_run(const sn_linear *w, const float *x, int64_t ldx, int64_t n, float *y, int64_t ldy,
                   int32_t accumulate, const void *scratch, int32_t first_tile, int32_t end_tile);

/* All of it on the calling thread. Scratch memory for min(n, SN_BLOCK_ROWS) rows is enough. */
void sn_linear_forward(const sn_linear *w, const float *x, int64_t ldx, int64_t n, float *y, int64_t ldy,
                       int32_t accumulate, void *scratch);

/* Bytes of a linear's packed weights; needs kind, rows and cols only. */
int64_t sn_packed_bytes(const sn_linear *w);

/* Writes rows first_row.. of w's weights from n rows of a GGUF file, `row_bytes` apart, order[i] being the i-th
 * (NULL: as they lie). The file's type is told by kind: Q4_0 is SN_INT4|SN_SCALE_F16|SN_CENTRED, Q4_1
 * SN_INT4|SN_SCALE_F16|SN_MINIMUM, Q4_K SN_INT4|SN_SCALE_K|SN_MINIMUM, Q6_K SN_INT6|SN_SCALE_K, Q8_0
 * SN_INT8|SN_SCALE_F16, MXFP4 SN_INT4|SN_SCALE_BF16|SN_FP4. */
void sn_pack_file(const sn_linear *w, int64_t first_row, int64_t n, const uint8_t *rows, int64_t row_bytes,
                  const int64_t *order, void *packed);

/* Writes rows first_row.. of int4 or int8 `w`'s weights. q: bytes (n, cols): 0..15, or int8. scale, minimum:
 * float32 (n, cols / 32), exact in the scales' type; minimum is read with SN_MINIMUM only. cols % 32 == 0.
 * What no row is written to must be zero: that is a weight of 0. */
void sn_pack_int(const sn_linear *w, int64_t first_row, int64_t n, const uint8_t *q, const float *scale,
                 const float *minimum, void *packed);

/* The same for dense w: values (n, cols) of its type. */
void sn_pack_dense(const sn_linear *w, int64_t first_row, int64_t n, const void *values, void *packed);

/* Writes the weights of a row of int8 w to out (cols): q * scale in float32. */
void sn_unpack_int8(const sn_linear *w, int64_t row, float *out);

#ifdef __cplusplus
}
#endif
#endif
