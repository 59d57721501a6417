/* Blocks of 256 weights in groups with small scales of their own. Layouts as in ggml's ggml-common.h. */
#ifndef SLM_FORMATS_K_H
#define SLM_FORMATS_K_H
#include "fields.h"
#include "panel.h"

typedef struct { uint8_t small[16], pairs[64]; uint16_t d, dmin; } block_Q2_K;           /* w = d scale q - dmin least */
typedef struct { uint8_t third[32], pairs[64], small[12]; uint16_t d; } block_Q3_K;      /* w = d scale (q - 4) */
typedef struct { uint8_t low[128], high[64]; int8_t scale[16]; uint16_t d; } block_Q6_K; /* w = d scale (q - 32) */
typedef struct { uint16_t d, dmin; uint8_t small[12], low[128]; } block_Q4_K;            /* w = d scale q - dmin least */
typedef struct { uint16_t d, dmin; uint8_t small[12], high[32], low[128]; } block_Q5_K;
_Static_assert(sizeof(block_Q6_K) == 210 && sizeof(block_Q4_K) == 144 && sizeof(block_Q5_K) == 176, "ggml's sizes");
_Static_assert(sizeof(block_Q2_K) == 84 && sizeof(block_Q3_K) == 110, "ggml's sizes");

/* 2 runs of 128 weights, of 32 bytes each: byte i holds weights i, i + 32, i + 64 and i + 96. */
ALWAYS void pairs_get(const uint8_t *pairs, uint8_t *q) {
  UNROLL for (int g = 0; g < 8; g++) fields_get(pairs + g / 4 * 32, 32, g % 4 * 2, 3, q + 32 * g);
}
/* Bit g of byte i is bit `to` of weight 32 g + i. */
ALWAYS void bits_add(const uint8_t *bits, int to, uint8_t *q) {
  UNROLL for (int g = 0; g < 8; g++) fields_add(bits, 32, g, 1, to, q + 32 * g);
}
static inline void open_Q2_K(const block_Q2_K *b, slm_block *o) {
  pairs_get(b->pairs, o->q);
  memcpy(o->small, b->small, 16), memcpy(o->scale, &b->d, 2), memcpy(o->least, &b->dmin, 2);
}
/* The scales' lower 4 bits: of groups i and i + 8 in a byte; their upper 2 stand as in a panel. */
static inline void open_Q3_K(const block_Q3_K *b, slm_block *o) {
  pairs_get(b->pairs, o->q);
  bits_add(b->third, 2, o->q);
  for (int x = 0; x < 4; x++) {
    o->small[x] = (uint8_t)((b->small[x] & 15) | b->small[x + 4] << 4);
    o->small[4 + x] = (uint8_t)(b->small[x] >> 4 | (b->small[x + 4] & 240));
    o->small[8 + x] = b->small[8 + x];
  }
  memcpy(o->scale, &b->d, 2);
}

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
ALWAYS void runs_get(const uint8_t *low, uint8_t *q) {
  for (int r = 0; r < 4; r++) nibbles_get(low + 32 * r, 32, q + 64 * r);
}
static inline void open_Q4_K(const block_Q4_K *b, slm_block *o) {
  runs_get(b->low, o->q);
  memcpy(o->small, b->small, 12), memcpy(o->scale, &b->d, 2), memcpy(o->least, &b->dmin, 2);
}
static inline void open_Q5_K(const block_Q5_K *b, slm_block *o) {
  runs_get(b->low, o->q);
  bits_add(b->high, 4, o->q);
  memcpy(o->small, b->small, 12), memcpy(o->scale, &b->d, 2), memcpy(o->least, &b->dmin, 2);
}

/* Each half of 128 weights has 64 bytes of low nibbles and 32 of high bits: byte i of the latter serves i, i + 32 … */
static inline void open_Q6_K(const block_Q6_K *b, slm_block *o) {
  for (int half = 0; half < 2; half++) {
    nibbles_get(b->low + 64 * half, 64, o->q + 128 * half);
    UNROLL for (int run = 0; run < 4; run++)
      fields_add(b->high + 32 * half, 32, 2 * run, 3, 4, o->q + 128 * half + 32 * run);
  }
  memcpy(o->small, b->scale, 16), memcpy(o->scale, &b->d, 2);
}

#endif
