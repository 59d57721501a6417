/* Blocks of 256 weights in groups with small scales of their own. Layouts as in ggml's ggml-common.h. */
#ifndef SLM_FORMATS_K_H
#define SLM_FORMATS_K_H
#include "f16.h"

typedef struct { uint8_t low[128], high[64]; int8_t scale[16]; uint16_t d; } block_Q6_K; /* w = d scale (q - 32) */
_Static_assert(sizeof(block_Q6_K) == 210, "ggml's size");

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
