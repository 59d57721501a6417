/* Blocks of codes of one or two bits, and of base-3 digits, under one f16 scale. Layouts as in ggml's ggml-common.h. */
#ifndef SLM_FORMATS_TERNARY_H
#define SLM_FORMATS_TERNARY_H
#include "k.h"

typedef struct { uint8_t five[48], four[4]; uint16_t d; } block_TQ1_0; /* w = d (digit - 1) */
typedef struct { uint8_t pairs[64]; uint16_t d; } block_TQ2_0;         /* w = d (q - 1) */
typedef struct { uint16_t d; uint8_t bits[16]; } block_Q1_0;           /* w = d or -d */
typedef struct { uint16_t d; uint8_t pairs[16]; } block_Q2_0;          /* w = d (q - 1) */
_Static_assert(sizeof(block_TQ1_0) == 54 && sizeof(block_TQ2_0) == 66, "ggml's sizes");
_Static_assert(sizeof(block_Q1_0) == 18 && sizeof(block_Q2_0) == 18, "ggml's sizes");

/* `digits` of each of n bytes, all first digits first. A byte is a fraction of 256, and times 3 its whole part is the
   next digit. */
ALWAYS void digits_get(const uint8_t *bytes, int n, int digits, uint8_t *q) {
  for (int power = 1; digits > 0; digits--, power *= 3, q += n)
    for (int i = 0; i < n; i++) q[i] = (uint8_t)((uint8_t)(bytes[i] * power) * 3 >> 8);
}
static inline void open_TQ1_0(const block_TQ1_0 *b, slm_block *o) {
  digits_get(b->five, 32, 5, o->q), digits_get(b->five + 32, 16, 5, o->q + 160), digits_get(b->four, 4, 4, o->q + 240);
  memcpy(o->scale, &b->d, 2);
}
static inline void open_TQ2_0(const block_TQ2_0 *b, slm_block *o) {
  pairs_get(b->pairs, o->q);
  memcpy(o->scale, &b->d, 2);
}
static inline void open_Q1_0(const block_Q1_0 *b, slm_block *o) {
  for (int i = 0; i < 16; i++) {
    const uint64_t x = spread_1(b->bits[i], 1);
    memcpy(o->q + 8 * i, &x, 8);
  }
  memcpy(o->scale, &b->d, 2);
}
static inline void open_Q2_0(const block_Q2_0 *b, slm_block *o) {
  for (int i = 0; i < 8; i++) {
    const uint64_t x = spread_2(b->pairs[2 * i] | (uint64_t)b->pairs[2 * i + 1] << 8);
    memcpy(o->q + 8 * i, &x, 8);
  }
  memcpy(o->scale, &b->d, 2);
}

#endif
