/* Blocks of 256 weights in groups with small scales of their own. Layouts as in ggml's ggml-common.h. */
#ifndef SLM_FORMATS_K_H
#define SLM_FORMATS_K_H
#include "f16.h"

typedef struct { uint8_t low[128], high[64]; int8_t scale[16]; uint16_t d; } block_Q6_K; /* w = d scale (q - 32) */
typedef struct { uint16_t d, dmin; uint8_t small[12], low[128]; } block_Q4_K;            /* w = d scale q - dmin least */
typedef struct { uint16_t d, dmin; uint8_t small[12], high[32], low[128]; } block_Q5_K;
_Static_assert(sizeof(block_Q6_K) == 210 && sizeof(block_Q4_K) == 144 && sizeof(block_Q5_K) == 176, "ggml's sizes");

/* 8 scales and 8 minima of 6 bits: the first 4 of each in 6 bits of bytes 0 to 7, of the others 4 bits each in bytes 8 to
   11 and 2 bits above those of the first. */
static inline void six_bits_get(const uint8_t *small, uint8_t *scale, uint8_t *least) {
  for (int i = 0; i < 4; i++) {
    scale[i] = small[i] & 63, least[i] = small[i + 4] & 63;
    scale[i + 4] = (uint8_t)((small[i + 8] & 15) | small[i] >> 6 << 4);
    least[i + 4] = (uint8_t)(small[i + 8] >> 4 | small[i + 4] >> 6 << 4);
  }
}

/* 4 runs of 64 weights, of 32 bytes each: low nibbles the first 32, high nibbles the others. */
static inline void runs_get(const uint8_t *low, uint8_t *q) {
  for (int r = 0; r < 4; r++, low += 32, q += 64)
    for (int i = 0; i < 32; i++) q[i] = low[i] & 15, q[i + 32] = low[i] >> 4;
}
static inline void runs_put(uint8_t *low, const uint8_t *q) {
  for (int r = 0; r < 4; r++, low += 32, q += 64)
    for (int i = 0; i < 32; i++) low[i] = (uint8_t)((q[i] & 15) | q[i + 32] << 4);
}
static inline void codes_get_Q4_K(const block_Q4_K *b, uint8_t *q) { runs_get(b->low, q); }
static inline void codes_put_Q4_K(block_Q4_K *b, const uint8_t *q) { runs_put(b->low, q); }
/* Bit g of byte i is the fifth bit of weight 32 g + i. */
static inline void codes_get_Q5_K(const block_Q5_K *b, uint8_t *q) {
  runs_get(b->low, q);
  for (int g = 0; g < 8; g++)
    for (int i = 0; i < 32; i++) q[32 * g + i] |= (uint8_t)((b->high[i] >> g & 1) << 4);
}
static inline void codes_put_Q5_K(block_Q5_K *b, const uint8_t *q) {
  runs_put(b->low, q);
  memset(b->high, 0, 32);
  for (int g = 0; g < 8; g++)
    for (int i = 0; i < 32; i++) b->high[i] |= (uint8_t)((q[32 * g + i] >> 4) << g);
}

/* Each half of 128 weights has 64 bytes of low nibbles and 32 of high bits: byte i of the latter serves i, i + 32 … */
static inline void codes_get_Q6_K(const block_Q6_K *b, uint8_t *q) {
  for (int h = 0; h < 2; h++, q += 128) {
    const uint8_t *low = b->low + 64 * h, *high = b->high + 32 * h;
    for (int i = 0; i < 32; i++) {
      q[i] = (uint8_t)((low[i] & 15) | (high[i] & 3) << 4);
      q[i + 32] = (uint8_t)((low[i + 32] & 15) | (high[i] >> 2 & 3) << 4);
      q[i + 64] = (uint8_t)(low[i] >> 4 | (high[i] >> 4 & 3) << 4);
      q[i + 96] = (uint8_t)(low[i + 32] >> 4 | (high[i] >> 6) << 4);
    }
  }
}
static inline void codes_put_Q6_K(block_Q6_K *b, const uint8_t *q) {
  for (int h = 0; h < 2; h++, q += 128) {
    uint8_t *low = b->low + 64 * h, *high = b->high + 32 * h;
    for (int i = 0; i < 32; i++) {
      low[i] = (uint8_t)((q[i] & 15) | q[i + 64] << 4);
      low[i + 32] = (uint8_t)((q[i + 32] & 15) | q[i + 96] << 4);
      high[i] = (uint8_t)(q[i] >> 4 | (q[i + 32] >> 4) << 2 | (q[i + 64] >> 4) << 4 | (q[i + 96] >> 4) << 6);
    }
  }
}

#endif
