/* The IQ types: codes that index a table of 16 values, or words of a codebook. In a panel a weight of the latter has a
   code of its own, of 2, 3 or 4 bits, for the table of panel.h. Layouts as in ggml's ggml-common.h. */
#ifndef SLM_FORMATS_IQ_H
#define SLM_FORMATS_IQ_H
#include "legacy.h"
#include "grids.inc"

typedef struct { uint16_t d; uint8_t low[16]; } block_IQ4_NL;                           /* w = d table[q] */
typedef struct { uint16_t d, high; uint8_t scale[4], low[128]; } block_IQ4_XS;          /* w = d (scale - 32) table[q] */
typedef struct { uint16_t d, q[32]; } block_IQ2_XXS;                                    /* w = d / 8 (2 scale + 1) word */
typedef struct { uint16_t d, q[32]; uint8_t scale[8]; } block_IQ2_XS;
typedef struct { uint16_t d; uint8_t q[32], sign[32], high[8], scale[8]; } block_IQ2_S;
typedef struct { uint16_t d; uint8_t q[64]; uint16_t rest[16]; } block_IQ3_XXS;         /* w = d / 4 (2 scale + 1) word */
typedef struct { uint16_t d; uint8_t q[64], high[8], sign[32], scale[4]; } block_IQ3_S; /* w = d (2 scale + 1) word */
typedef struct { uint16_t d; uint8_t q[32]; uint16_t high[8]; } block_IQ1_S;            /* w = d (2 scale + 1) (word ± 1/8) */
typedef struct { uint8_t q[32], high[16]; uint16_t scale[4]; } block_IQ1_M;
_Static_assert(sizeof(block_IQ4_NL) == 18 && sizeof(block_IQ4_XS) == 136 && sizeof(block_IQ2_XXS) == 66, "ggml's sizes");
_Static_assert(sizeof(block_IQ2_XS) == 74 && sizeof(block_IQ2_S) == 82 && sizeof(block_IQ3_XXS) == 98, "ggml's sizes");
_Static_assert(sizeof(block_IQ3_S) == 110 && sizeof(block_IQ1_S) == 50 && sizeof(block_IQ1_M) == 56, "ggml's sizes");

static inline void open_IQ4_NL(const block_IQ4_NL *b, slm_block *o) {
  nibbles_get(b->low, 16, o->q);
  memcpy(o->scale, &b->d, 2);
}
static inline void open_IQ4_XS(const block_IQ4_XS *b, slm_block *o) {
  for (int g = 0; g < 8; g++) {
    nibbles_get(b->low + 16 * g, 16, o->q + 32 * g);
    o->small[g] = (uint8_t)(((b->scale[g / 2] >> g % 2 * 4 & 15) | (b->high >> 2 * g & 3) << 4) - 32);
  }
  memcpy(o->scale, &b->d, 2);
}

/* Seven signs, and an eighth that makes the number of minuses even. */
static inline int eight_signs(int seven) { return seven | __builtin_parity((unsigned)seven) << 7; }
/* 8 digits of 2 bits, or 4 of 4, with bit number `minus` where a sign is. */
ALWAYS void word_get(uint16_t word, int bits, int signs, int minus, uint8_t *q) {
  const uint64_t x = (bits == 2 ? spread_2(word) : spread_4(word)) | spread_1(signs, minus);
  memcpy(q, &x, bits == 2 ? 8 : 4);
}
/* The word that holds 4 times 7 signs and a scale: 32 bits that are aligned to 16. */
static inline uint32_t two_words(const uint16_t *p) { return p[0] | (uint32_t)p[1] << 16; }

static inline void open_IQ2_XXS(const block_IQ2_XXS *b, slm_block *o) {
  for (int g = 0; g < 8; g++) {
    const uint32_t rest = two_words(b->q + 4 * g + 2), codes = two_words(b->q + 4 * g);
    for (int j = 0; j < 4; j++)
      word_get(grid_IQ2_XXS[codes >> 8 * j & 255], 2, eight_signs(rest >> 7 * j & 127), 2, o->q + 32 * g + 8 * j);
    o->small[g] = (uint8_t)(2 * (rest >> 28) + 1);
  }
  memcpy(o->scale, &b->d, 2);
}
/* Scales of 16 groups, two to a byte, to the panel's bytes: of groups 8v + x and 8v + 4 + x. */
static inline void nibble_scales(const uint8_t *scale, uint8_t *small) {
  for (int i = 0; i < 8; i++) {
    const int low = i / 4 * 8 + i % 4, high = low + 4;
    small[i] = (uint8_t)((scale[low / 2] >> low % 2 * 4 & 15) | (scale[high / 2] >> high % 2 * 4 & 15) << 4);
  }
}
static inline void open_IQ2_XS(const block_IQ2_XS *b, slm_block *o) {
  for (int j = 0; j < 32; j++) word_get(grid_IQ2_XS[b->q[j] & 511], 2, eight_signs(b->q[j] >> 9), 2, o->q + 8 * j);
  nibble_scales(b->scale, o->small);
  memcpy(o->scale, &b->d, 2);
}
static inline void open_IQ2_S(const block_IQ2_S *b, slm_block *o) {
  for (int j = 0; j < 32; j++)
    word_get(grid_IQ2_S[b->q[j] | (b->high[j / 4] >> j % 4 * 2 & 3) << 8], 2, b->sign[j], 2, o->q + 8 * j);
  nibble_scales(b->scale, o->small);
  memcpy(o->scale, &b->d, 2);
}
static inline void open_IQ3_XXS(const block_IQ3_XXS *b, slm_block *o) {
  for (int g = 0; g < 8; g++) {
    const uint32_t rest = two_words(b->rest + 2 * g);
    for (int j = 0; j < 8; j++)
      word_get(grid_IQ3_XXS[b->q[8 * g + j]], 4, eight_signs(rest >> 7 * (j / 2) & 127) >> j % 2 * 4, 3, o->q + 32 * g + 4 * j);
    o->small[g] = (uint8_t)(2 * (rest >> 28) + 1);
  }
  memcpy(o->scale, &b->d, 2);
}
static inline void open_IQ3_S(const block_IQ3_S *b, slm_block *o) {
  for (int j = 0; j < 64; j++)
    word_get(grid_IQ3_S[b->q[j] | (b->high[j / 8] >> j % 8 & 1) << 8], 4, b->sign[j / 2] >> j % 2 * 4, 3, o->q + 4 * j);
  for (int g = 0; g < 8; g++) o->small[g] = (uint8_t)(2 * (b->scale[g / 2] >> g % 2 * 4 & 15) + 1);
  memcpy(o->scale, &b->d, 2);
}
/* Where an eighth is taken away, digits and scale change their signs, so that it is added. */
static inline void open_IQ1_S(const block_IQ1_S *b, slm_block *o) {
  for (int g = 0; g < 8; g++) {
    const int high = b->high[g], turned = high >> 15, scale = 2 * (high >> 12 & 7) + 1;
    for (int j = 0; j < 4; j++) word_get(grid_IQ1_S[b->q[4 * g + j] | (high >> 3 * j & 7) << 8], 2, 0, 0, o->q + 32 * g + 8 * j);
    for (int i = 32 * g; i < 32 * g + 32 && turned; i++) o->q[i] = (uint8_t)(2 - o->q[i]);
    o->small[g] = (uint8_t)(turned ? -scale : scale);
  }
  memcpy(o->scale, &b->d, 2);
}
static inline void open_IQ1_M(const block_IQ1_M *b, slm_block *o) {
  uint8_t scale[8];
  uint16_t d = 0;
  for (int j = 0; j < 32; j++) {
    const int high = b->high[j / 2] >> j % 2 * 4 & 15;
    word_get(grid_IQ1_S[b->q[j] | (high & 7) << 8], 2, high & 8 ? 255 : 0, 2, o->q + 8 * j);
  }
  for (int i = 0; i < 4; i++) {
    const int s = b->scale[i];
    scale[2 * i] = (uint8_t)((s & 7) | (s >> 3 & 7) << 4), scale[2 * i + 1] = (uint8_t)((s >> 6 & 7) | (s >> 9 & 7) << 4);
    d |= (uint16_t)(s >> 12 << 4 * i);
  }
  nibble_scales(scale, o->small);
  memcpy(o->scale, &d, 2);
}

#endif
