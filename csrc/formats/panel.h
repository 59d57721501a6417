/* Where the parts of a block stand in a panel, 16 rows of a matrix; the one place that knows.
   Everything that belongs to a block stands beside it, so that a panel is read as one stream. For each 32 weights of its
   rows their codes, in planes: 4 vectors of 64 bytes (16 rows × 4 bytes) of low nibbles, vector j holding elements
   4j … 4j + 3 below and 16 + 4j … above; then a vector of fifth bits (bit v: elements 4v …), or two of bit pairs (pair j of
   vector u: elements 16u + 4j …); or 8 vectors of whole bytes.
   legacy: two blocks' codes, then their two times 16 f16 scales (and minima); an odd last block leaves room.
   k16:    16 groups of 16 rows' small scales, 16 f16 scales, 32 bytes of nothing, codes.
   k32:    each row's 12 bytes of small scales as 3 words of 16 rows, 16 f16 scales, 16 f16 minima, codes.
   Of a float type: for each element, its value in 16 rows. A panel is padded to 64 bytes. */
#ifndef SLM_FORMATS_PANEL_H
#define SLM_FORMATS_PANEL_H
#include <stdint.h>

enum { PANEL = 16 };

/* By kin: weights in a block; blocks in a unit, the least that ends on 64 bytes, and its bytes. */
enum { legacy_BLOCK = 32, k16_BLOCK = 256, k32_BLOCK = 256, legacy_UNIT = 2, k16_UNIT = 1, k32_UNIT = 1 };
#define legacy_BYTES(planes, min) (2 * 64 * (planes) + 64 + 64 * (min))
#define k16_BYTES(planes, min) (320 + 8 * 64 * (planes))
#define k32_BYTES(planes, min) (256 + 8 * 64 * (planes))

/* The parts of one block. */
typedef struct {
  uint8_t *codes, *small, *scales, *mins;
} slm_parts;

static inline slm_parts legacy_parts(const uint8_t *panel, int i, int planes, int min) {
  uint8_t *unit = (uint8_t *)panel + (int64_t)(i / 2) * legacy_BYTES(planes, min), *scales = unit + 2 * 64 * planes + i % 2 * 32;
  return (slm_parts){unit + i % 2 * 64 * planes, scales, scales, scales + 64};
}
static inline slm_parts k16_parts(const uint8_t *panel, int i, int planes, int min) {
  (void)min;
  uint8_t *small = (uint8_t *)panel + (int64_t)i * k16_BYTES(planes, min);
  return (slm_parts){small + 320, small, small + 256, small + 256};
}
static inline slm_parts k32_parts(const uint8_t *panel, int i, int planes, int min) {
  (void)min;
  uint8_t *small = (uint8_t *)panel + (int64_t)i * k32_BYTES(planes, min);
  return (slm_parts){small + 256, small, small + 192, small + 224};
}
#endif
