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

/* Digit i of `n` bytes of 5 (or fewer) digits each, all first digits first. A byte is a fraction of 256, and times 3 its
   whole part is the next digit. */
static inline uint8_t digit(const uint8_t *bytes, int n, int i) {
  static const uint8_t powers[5] = {1, 3, 9, 27, 81};
  return (uint8_t)((uint8_t)(bytes[i % n] * powers[i / n]) * 3 >> 8);
}
static inline void open_TQ1_0(const block_TQ1_0 *b, slm_block *o) {
  for (int i = 0; i < 160; i++) o->q[i] = digit(b->five, 32, i);
  for (int i = 0; i < 80; i++) o->q[160 + i] = digit(b->five + 32, 16, i);
  for (int i = 0; i < 16; i++) o->q[240 + i] = digit(b->four, 4, i);
  memcpy(o->scale, &b->d, 2);
}
static inline void open_TQ2_0(const block_TQ2_0 *b, slm_block *o) {
  pairs_get(b->pairs, o->q);
  memcpy(o->scale, &b->d, 2);
}
static inline void open_Q1_0(const block_Q1_0 *b, slm_block *o) {
  for (int i = 0; i < 128; i++) o->q[i] = (uint8_t)((b->bits[i / 8] >> i % 8 & 1) << 1);
  memcpy(o->scale, &b->d, 2);
}
static inline void open_Q2_0(const block_Q2_0 *b, slm_block *o) {
  for (int i = 0; i < 64; i++) o->q[i] = b->pairs[i / 4] >> i % 4 * 2 & 3;
  memcpy(o->scale, &b->d, 2);
}

#endif
