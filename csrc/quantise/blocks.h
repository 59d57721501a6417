/* Codes and scales into blocks. Layouts as in ggml's ggml-common.h; codes come in the order of their weights. */
#ifndef SLM_QUANTISE_BLOCKS_H
#define SLM_QUANTISE_BLOCKS_H
#include "quantise.h"

static inline int f16_put(uint8_t *to, float f) {
  const uint16_t h = f16_of(f);
  memcpy(to, &h, 2);
  return (h & 0x7c00) == 0x7c00 ? SLM_E_NONFINITE : SLM_OK;
}

/* Byte i has code i in its low, code i + n in its high half. */
static inline void nibbles_put(uint8_t *to, const uint8_t *q, int n) {
  for (int i = 0; i < n; i++) to[i] = (uint8_t)((q[i] & 15) | q[i + n] << 4);
}

/* The fifth bits of 32 codes, in order. */
static inline void fifth_put(uint8_t *to, const uint8_t *q) {
  memset(to, 0, 4);
  for (int i = 0; i < 32; i++) to[i / 8] |= (uint8_t)((q[i] >> 4 & 1) << i % 8);
}

/* 2 bits of 256 codes: byte i of each half has those of i, i + 32, i + 64, i + 96. */
static inline void pairs_put(uint8_t *to, const uint8_t *q) {
  for (int h = 0; h < 2; h++, q += 128)
    for (int i = 0; i < 32; i++)
      *to++ = (uint8_t)((q[i] & 3) | (q[i + 32] & 3) << 2 | (q[i + 64] & 3) << 4 | (q[i + 96] & 3) << 6);
}

static inline void block_put_Q2_K(uint8_t *to, const int *scale, const int *minimum, const uint8_t *q) {
  for (int g = 0; g < 16; g++) to[g] = (uint8_t)(scale[g] | minimum[g] << 4);
  pairs_put(to + 16, q);
}

/* After the scales of Q4_K and Q5_K: fifth bits, bit g of byte i weight 32 g + i's; nibbles in 4 runs of 64 weights. */
static inline void runs_put(uint8_t *to, const uint8_t *q, int five) {
  if (five) {
    memset(to, 0, 32);
    for (int i = 0; i < 256; i++) to[i % 32] |= (uint8_t)((q[i] >> 4) << i / 32);
    to += 32;
  }
  for (int r = 0; r < 4; r++) nibbles_put(to + 32 * r, q + 64 * r, 32);
}

/* Each half of 128 weights: 64 bytes of nibbles; then, for both, the upper pairs of bits; then 16 scales. */
static inline void block_put_Q6_K(uint8_t *to, const int *scale, const uint8_t *q) {
  uint8_t high[256];
  for (int i = 0; i < 256; i++) high[i] = q[i] >> 4;
  for (int h = 0; h < 2; h++) nibbles_put(to + 64 * h, q + 128 * h, 64);
  pairs_put(to + 128, high);
  for (int g = 0; g < 16; g++) to[192 + g] = (uint8_t)scale[g];
}

/* The third bits first, bit g of byte i weight 32 g + i's; 16 scales of 6 bits, offset by 32: 4 bits each, two to a byte
   (g and g + 8), then 2 bits each. */
static inline void block_put_Q3_K(uint8_t *to, const int *scale, const uint8_t *q) {
  memset(to, 0, 110);
  for (int i = 0; i < 256; i++) to[i % 32] |= (uint8_t)((q[i] >> 2) << i / 32);
  pairs_put(to + 32, q);
  for (int g = 0; g < 16; g++) {
    const int s = scale[g] + 32;
    to[96 + g % 8] |= (uint8_t)((s & 15) << g / 8 * 4);
    to[104 + g % 4] |= (uint8_t)((s >> 4) << g / 4 * 2);
  }
}

/* 8 scales and 8 minima of 6 bits: of the first 4 of each, bytes 0 to 7 have all bits; of the others, bytes 8 to 11 have 4
   and the tops of bytes 0 to 7 two. */
static inline void six_bits_put(uint8_t *small, const int *scale, const int *minimum) {
  for (int i = 0; i < 4; i++) {
    small[i] = (uint8_t)(scale[i] | (scale[i + 4] >> 4) << 6);
    small[i + 4] = (uint8_t)(minimum[i] | (minimum[i + 4] >> 4) << 6);
    small[i + 8] = (uint8_t)((scale[i + 4] & 15) | (minimum[i + 4] & 15) << 4);
  }
}

/* After d: 8 scales of 6 bits, offset by 32, their 2 upper bits in one word, their lower 4 two to a byte. */
static inline void block_put_IQ4_XS(uint8_t *to, const int *scale, const uint8_t *q) {
  memset(to + 2, 0, 6);
  for (int g = 0; g < 8; g++) {
    const int s = scale[g] + 32;
    to[2 + g / 4] |= (uint8_t)((s >> 4) << g % 4 * 2);
    to[4 + g / 2] |= (uint8_t)((s & 15) << g % 2 * 4);
    nibbles_put(to + 8 + 16 * g, q + 32 * g, 16);
  }
}

/* n codes of so many bits, the first in the lowest bits of a byte. */
static inline void packed_put(uint8_t *to, const uint8_t *q, int n, int bits) {
  memset(to, 0, (size_t)(n * bits / 8));
  for (int i = 0; i < n; i++) to[i * bits / 8] |= (uint8_t)(q[i] << i * bits % 8);
}

/* 5 digits of base 3 as the byte whose products with 3, 9 … have them in their upper bits: ⌈256 n / 243⌉. */
static inline uint8_t trits(const uint8_t *q, int step, int count) {
  int n = 0;
  for (int i = 0; i < 5; i++) n = 3 * n + (i < count ? q[i * step] : 0);
  return (uint8_t)((256 * n + 242) / 243);
}
static inline void block_put_TQ1_0(uint8_t *to, const uint8_t *q) {
  for (int i = 0; i < 32; i++) to[i] = trits(q + i, 32, 5);
  for (int i = 0; i < 16; i++) to[32 + i] = trits(q + 160 + i, 16, 5);
  for (int i = 0; i < 4; i++) to[48 + i] = trits(q + 240 + i, 4, 4);
}
#endif
