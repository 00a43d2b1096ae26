/* Linear layers over packed weights: y = x W^T + bias, on the CPU, in C11 with GCC/Clang vector types.
 *
 * Integer weights are multiplied by activations in fixed point: each group of 32 activations has one scale, and
 * every activation is `digits` signed base-256 digits (3: as exact as float32 sums, error 2^-24 of the group's
 * largest; 2: 2^-16; 1: 2^-8). Sums within a group are exact integers and groups are added in order, so an
 * output row's bits depend on its input row and the weights alone: not on the batch, the tile, the thread or
 * the instruction set. Float weights are multiplied in float32, in one order.
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
    SN_INT = 3,    /* integers of 1 to 8 bits in groups of 32: weight = value(q) * scale [+ minimum] */
    SN_STACK = 4,  /* several linears one below the other, each of its own kind: see `parts` */
    SN_FLOAT8 = 5, /* floats of type e4m3: weight = float * scale, which is no SN_SCALE_K */
    SN_BASE = 15,  /* mask of the above in `kind`; what follows is of SN_INT */
    SN_SCALE_F32 = 0 << 4,
    SN_SCALE_F16 = 1 << 4,
    SN_SCALE_BF16 = 2 << 4,
    SN_SCALE_K = 3 << 4,  /* bytes times a float16 for 8 groups; they are signed unless there are minima */
    SN_SCALE_K4 = 4 << 4, /* the same with four bits for a scale and four for its minimum */
    SN_SCALE_TYPE = 7 << 4,
    SN_HALVES = 1 << 7,  /* a scale (and a minimum) for each 16 columns of a group */
    SN_MINIMUM = 1 << 8, /* there are minima (with SN_CENTRED: centres) */
    SN_CENTRED = 1 << 9, /* value(q) = q - half of their number, which is 2^bits; else value(q) = q */
    SN_FP4 = 1 << 10,    /* value(q) = twice the float of 1 sign bit, 2 of exponent and 1 of fraction */
    SN_IQ4 = 2 << 10,    /* value(q) = GGUF's table of IQ4_NL */
    SN_ZERO = 3 << 10,   /* value(q) = q less the zero point of its row and group: see SN_COLS_OF */
    SN_TABLE = 3 << 10,
    SN_BIT = 1 << 12, /* times the bits of an integer */
    SN_BITS = 15 * SN_BIT,
};
#define SN_BITS_OF(kind) (((kind) & SN_BITS) / SN_BIT)
/* Columns that share a scale, a multiple of SN_GROUP that divides a row's; 0: of SN_FLOAT8 all, of SN_INT those of a
 * group. Integers that share have 4 or 8 bits, plain scales and no SN_HALVES; those with SN_ZERO always share. */
#define SN_COLS_OF(kind) (((kind) >> 16) * SN_GROUP)

enum { SN_MOST_PARTS = 4 };

typedef struct sn_part {
    int32_t kind, rows;
} sn_part;

/* `weights` (64-byte aligned, rows padded to SN_TILE, columns to SN_GROUP with zero weights):
 *  dense: [tile][column][32 rows]
 *  integers: [tile][group]: planes of their bits, then [32 rows] scales (with SN_HALVES: of the first 16 columns, then of
 *         the others) and, with SN_MINIMUM, as many minima. SN_SCALE_K, SN_SCALE_K4: 8 groups follow [32 rows] float16 d
 *         and, with SN_MINIMUM, [32] float16 dmin; weight = value(q) * (d * scale) - dmin * minimum. Signed bytes have 128
 *         added.
 *         Where SN_COLS_OF(kind) share, their scales, then minima or, with SN_ZERO, [32 rows] bytes lead the groups' planes.
 *  planes: the integers' bits cut into 8, 4, 2 and 1 of them as their number is a sum of these, the lowest bits in the
 *         widest plane. One of w bits is [2 panels of 16 rows][w][16 rows][4 bytes]; of each four columns, which are a
 *         quad, byte b has column b, and quads lie from the lowest bits of a byte on: as many as it can hold.
 *  floats of eight bits: [tile][SN_COLS_OF(kind) columns, or all where that is 0]: [32 rows] scales, then [pairs of
 *         columns][32 rows][2 columns] bytes
 *  a stack: its parts one after the other
 * `bias`: float32 (rows, and SN_TILE more at the end, which are read) or NULL.
 */
typedef struct sn_linear {
    int32_t kind;
    int32_t variant; /* with integer weights: digits of an activation, 1 to 3; else 0 */
    int32_t rows;    /* outputs, as the caller sees them */
    int32_t cols;    /* inputs */
    const void *weights;
    const float *bias;
    sn_part parts[SN_MOST_PARTS]; /* of a stack: from the first row on; a part with 0 rows is none */
} sn_linear;

/* Bytes of scratch memory for n input rows, 64-byte aligned by the caller; grows with n. 0 is possible. */
int64_t sn_linear_scratch(const sn_linear *w, int64_t n);

/* Input rows to what the kernels read; once, before the parts run. `x`: n rows of cols, `ldx` floats apart. */
void sn_linear_prepare(const sn_linear *w, const float *x, int64_t ldx, int64_t n, void *scratch);

/* The same for input rows first to end of the n, columns from first_col (a multiple of SN_GROUP) to end_col (another,
 * or all): prepared in parallel. */
void sn_linear_prepare_part(const sn_linear *w, const float *x, int64_t ldx, int64_t n, void *scratch,
                            int64_t first, int64_t end, int64_t first_col, int64_t end_col);

/* Independent parts of the product: tiles of SN_TILE output rows. Each part of a stack begins with a new one. */
int32_t sn_linear_parts(const sn_linear *w);

/* The first output row of a part; of the number behind the last, how many rows there are. */
int32_t sn_linear_first_row(const sn_linear *w, int32_t tile);

/* Output tiles first_tile to end_tile of y (n rows, `ldy` floats apart), written or, with `accumulate`, added to. */
void sn_linear_run(const sn_linear *w, const float *x, int64_t ldx, int64_t n, float *y, int64_t ldy,
                   int32_t accumulate, const void *scratch, int32_t first_tile, int32_t end_tile);

/* All of it on the calling thread. Scratch memory for min(n, SN_BLOCK_ROWS) rows is enough. */
void sn_linear_forward(const sn_linear *w, const float *x, int64_t ldx, int64_t n, float *y, int64_t ldy,
                       int32_t accumulate, void *scratch);

/* Bytes of a linear's packed weights; needs kind, rows, cols and parts only. */
int64_t sn_packed_bytes(const sn_linear *w);

/* Writes rows first_row.. of w's weights from n rows of a file, `row_bytes` apart, order[i] being the i-th (NULL: as they
 * lie). They are values of a dense w's type; else the type of GGUF that lies so, without its SN_SCALE_F16 or SN_BIT:
 *  Q8_0 8 SN_CENTRED, Q5_0 5 SN_CENTRED, Q5_1 5 SN_MINIMUM, Q4_0 4 SN_CENTRED, Q4_1 4 SN_MINIMUM, IQ4_NL 4 SN_IQ4
 *  MXFP4 4 SN_FP4 SN_SCALE_BF16
 *  Q6_K 6 SN_CENTRED SN_HALVES, Q5_K 5 SN_MINIMUM, Q4_K 4 SN_MINIMUM, IQ4_XS 4 SN_IQ4, Q3_K 3 SN_CENTRED SN_HALVES, all with
 *  SN_SCALE_K; Q2_K 2 SN_MINIMUM SN_HALVES SN_SCALE_K4. The rows are of one part of a stack. */
void sn_pack_file(const sn_linear *w, int64_t first_row, int64_t n, const uint8_t *rows, int64_t row_bytes,
                  const int64_t *order, void *packed);

/* Writes rows first_row.. of `w`'s integer weights. q: bytes (n, cols), of 8 bits with SN_CENTRED signed.
 * scale, minimum: float32 (n, cols / 32, with SN_HALVES / 16, or / SN_COLS_OF), exact in the scales' type, which is no
 * SN_SCALE_K; zero: bytes, as many; minimum is read with SN_MINIMUM only, zero with SN_ZERO. cols % 32 == 0.
 * What no row is written to must be zero: that is a weight of 0. */
void sn_pack_int(const sn_linear *w, int64_t first_row, int64_t n, const uint8_t *q, const float *scale,
                 const float *minimum, const uint8_t *zero, void *packed);

/* The same for floats of eight bits: bytes (n, cols), scale float32 (n, groups), exact in the scales' type. */
void sn_pack_float8(const sn_linear *w, int64_t first_row, int64_t n, const uint8_t *q, const float *scale,
                    void *packed);

/* Writes the weights of a row of w, which has SN_BITS of 8, to out (cols): value(q) * scale in float32. */
void sn_unpack_int8(const sn_linear *w, int64_t row, float *out);

#ifdef __cplusplus
}
#endif
#endif
