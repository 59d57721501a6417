/* Where the parts of a block stand in a panel, 16 rows of a matrix; the one place that knows.
   Everything that belongs to a block stands beside it, so that a panel is read as one stream: units of as many blocks as
   end on 64 bytes (1, 2 or 4; the last unit may have fewer). A unit: the scales of its blocks, their minima, nothing up to
   64 bytes; then of each block the small scales, and its codes. What stands between codes is kept short: the CPU's own
   fetching ahead follows loads at an even distance, and 512 bytes of small scales together cost a tenth of the speed.
   Scales: of each in turn 16 rows' bytes (f16: 2 bytes; the 12 bytes of Q4_K and Q5_K: 3 words of 4). Small ones of 4 bits:
   byte 4v + x holds groups 8v + x and 8v + 4 + x; of 6 bits, their upper 2 in bytes 8 + x, of groups x, x + 4, x + 8, x + 12.
   Codes: for each 32 weights, in planes: 4 vectors of 64 bytes (16 rows × 4 bytes) of low nibbles, vector j holding
   elements 4j … 4j + 3 below and 16 + 4j … above, then a vector of fifth bits (bit v: elements 4v …) or two of bit pairs
   (pair j of vector u: elements 16u + 4j …); or, with fewer than 4 bits, these two of pairs, one of bits, or both; or 8
   vectors of whole bytes.
   Of a float type: for each element, its value in 16 rows. A panel is padded to 64 bytes. */
#ifndef SLM_FORMATS_PANEL_H
#define SLM_FORMATS_PANEL_H
#include <stdint.h>
#include "tables.h"

enum { PANEL = 16 };

/* What formats have in common: the scales of a block. */
typedef struct {
  int block, group;        /* weights in a block, and in a group with a small scale of its own (else 0) */
  int small, scale, least; /* bytes a block and row: of all its small scales, its scale, its minimum */
  int act;                 /* activations that share a scale */
} slm_kin;
static const slm_kin slm_b32 = {32, 0, 0, 2, 0, 32};         /* an f16 scale */
static const slm_kin slm_b32m = {32, 0, 0, 2, 2, 32};        /* an f16 scale and minimum */
static const slm_kin slm_b32e = {32, 0, 0, 1, 0, 32};        /* an e8m0 scale, less 128 */
static const slm_kin slm_b64 = {64, 0, 0, 2, 0, 64};
static const slm_kin slm_b128 = {128, 0, 0, 2, 0, 128};
static const slm_kin slm_b256 = {256, 0, 0, 2, 0, 256};
static const slm_kin slm_n16 = {64, 16, 0, 4, 0, 16};        /* 4 ue4m3 scales */
static const slm_kin slm_k16 = {256, 16, 16, 2, 0, 256};     /* 16 int8 scales under an f16 one */
static const slm_kin slm_k16six = {256, 16, 12, 2, 0, 256};  /* of 6 bits, less 32 */
static const slm_kin slm_k16odd = {256, 16, 8, 2, 0, 256};   /* of 4 bits, s for 2s + 1 */
static const slm_kin slm_k16m = {256, 16, 16, 2, 2, 256};    /* 16 scales of 4 bits, minima of 4 above, two f16 */
static const slm_kin slm_k32 = {256, 32, 8, 2, 0, 256};      /* 8 int8 scales under an f16 one */
static const slm_kin slm_k32m = {256, 32, 12, 2, 2, 256};    /* 8 scales and minima of 6 bits, two f16 */

/* A format's panel. */
typedef struct {
  slm_kin kin;
  int planes, bits, zero;  /* bits that a code takes, and that its value takes; 1 << zero means 0, with -1 a 0 does */
  float part;              /* the scale is this part of the f16 */
  const uint8_t *table;    /* 16 values, four times; NULL where codes are their own values */
} slm_form;
#define FORMAT(type, kin, planes, bits, zero, part, table) \
  static const slm_form form_##type = {slm_##kin, planes, bits, zero, part, table};
#define SAME(type, as)
#include "../formats.inc"
#undef FORMAT
#undef SAME

/* One row's block, taken apart: the codes of the panel (of 1 bit: 0 or 2), and its bytes of scales and minima. */
typedef struct {
  uint8_t q[256], small[16], scale[4], least[2];
} slm_block;

typedef struct {
  uint8_t *scales, *mins; /* of the unit's first block, the others' behind it */
  uint8_t *small, *codes; /* of the first block, the others' each `step` behind */
  int blocks, head, step; /* blocks in it; bytes before the first one's small scales; from one block to the next */
  int64_t bytes;
} slm_unit_at;

/* Bytes of one block's small scales and codes. */
static inline int slm_block_step(slm_form f) { return f.kin.small * PANEL + f.kin.block * 2 * f.planes; }

/* Bytes of scales before a unit's n blocks, and how many blocks a unit has but for the last. */
static inline int slm_unit_head(slm_kin k, int n) { return (n * (k.scale + k.least) * PANEL + 63) / 64 * 64; }
static inline int slm_unit_blocks(slm_kin k) {
  const int bytes = k.scale + k.least;
  return bytes % 4 == 0 ? 1 : bytes % 2 == 0 ? 2 : 4;
}
static inline int64_t slm_unit_bytes(slm_form f, int n) { return slm_unit_head(f.kin, n) + (int64_t)n * slm_block_step(f); }

/* The unit that starts at `panel` with `left` blocks from there to the panel's end. */
static inline slm_unit_at slm_panel_unit(const uint8_t *panel, int left, slm_form f) {
  const slm_kin k = f.kin;
  const int most = slm_unit_blocks(k), n = left < most ? left : most, head = slm_unit_head(k, n);
  uint8_t *p = (uint8_t *)panel, *first = p + head;
  return (slm_unit_at){p, p + n * k.scale * PANEL, first, first + k.small * PANEL, n, head, slm_block_step(f),
                       slm_unit_bytes(f, n)};
}
#endif
