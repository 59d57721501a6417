/* Blocks of 32 weights with an f16 scale, and a minimum in the _1 types. Layouts as in ggml's ggml-common.h. */
#ifndef SLM_FORMATS_LEGACY_H
#define SLM_FORMATS_LEGACY_H
#include "fields.h"
#include "panel.h"

typedef struct { uint16_t d; uint8_t low[16]; } block_Q4_0;                     /* w = d (q - 8) */
typedef struct { uint16_t d, m; uint8_t low[16]; } block_Q4_1;                  /* w = d q + m */
typedef struct { uint16_t d; uint8_t high[4], low[16]; } block_Q5_0;            /* w = d (q - 16) */
typedef struct { uint16_t d, m; uint8_t high[4], low[16]; } block_Q5_1;         /* w = d q + m */
typedef struct { uint16_t d; int8_t q[32]; } block_Q8_0;                        /* w = d q */
_Static_assert(sizeof(block_Q4_0) == 18 && sizeof(block_Q4_1) == 20 && sizeof(block_Q5_0) == 22, "ggml's sizes");
_Static_assert(sizeof(block_Q5_1) == 24 && sizeof(block_Q8_0) == 34, "ggml's sizes");

/* Each `open`: a block's codes as unsigned bytes in the order of its weights, and its scales. */
ALWAYS void nibbles_get(const uint8_t *low, int n, uint8_t *q) {
  fields_get(low, n, 0, 15, q), fields_get(low, n, 4, 15, q + n);
}
ALWAYS void fifth_get(const uint8_t *high, uint8_t *q) {
  UNROLL for (int i = 0; i < 4; i++) {
    const uint64_t x = eight(q + 8 * i) | spread_1(high[i], 4);
    memcpy(q + 8 * i, &x, 8);
  }
}
static inline void open_Q4_0(const block_Q4_0 *b, slm_block *o) {
  nibbles_get(b->low, 16, o->q);
  memcpy(o->scale, &b->d, 2);
}
static inline void open_Q4_1(const block_Q4_1 *b, slm_block *o) {
  nibbles_get(b->low, 16, o->q);
  memcpy(o->scale, &b->d, 2), memcpy(o->least, &b->m, 2);
}
static inline void open_Q5_0(const block_Q5_0 *b, slm_block *o) {
  nibbles_get(b->low, 16, o->q), fifth_get(b->high, o->q);
  memcpy(o->scale, &b->d, 2);
}
static inline void open_Q5_1(const block_Q5_1 *b, slm_block *o) {
  nibbles_get(b->low, 16, o->q), fifth_get(b->high, o->q);
  memcpy(o->scale, &b->d, 2), memcpy(o->least, &b->m, 2);
}
static inline void open_Q8_0(const block_Q8_0 *b, slm_block *o) {
  for (int i = 0; i < 32; i++) o->q[i] = (uint8_t)(b->q[i] ^ 128);
  memcpy(o->scale, &b->d, 2);
}

#endif
