/* Blocks of 32 weights with an f16 scale, and a minimum in the _1 types. Layouts as in ggml's ggml-common.h. */
#ifndef SLM_FORMATS_LEGACY_H
#define SLM_FORMATS_LEGACY_H
#include "f16.h"

typedef struct { uint16_t d; uint8_t low[16]; } block_Q4_0;                     /* w = d (q - 8) */
typedef struct { uint16_t d, m; uint8_t low[16]; } block_Q4_1;                  /* w = d q + m */
typedef struct { uint16_t d; uint8_t high[4], low[16]; } block_Q5_0;            /* w = d (q - 16) */
typedef struct { uint16_t d, m; uint8_t high[4], low[16]; } block_Q5_1;         /* w = d q + m */
typedef struct { uint16_t d; int8_t q[32]; } block_Q8_0;                        /* w = d q */
_Static_assert(sizeof(block_Q4_0) == 18 && sizeof(block_Q4_1) == 20 && sizeof(block_Q5_0) == 22, "ggml's sizes");
_Static_assert(sizeof(block_Q5_1) == 24 && sizeof(block_Q8_0) == 34, "ggml's sizes");

/* Each pair of functions: a block's codes as unsigned bytes in the order of its weights, and back. */
static inline void nibbles_get(const uint8_t *low, uint8_t *q) {
  for (int i = 0; i < 16; i++) q[i] = low[i] & 15, q[i + 16] = low[i] >> 4;
}
static inline void nibbles_put(uint8_t *low, const uint8_t *q) {
  for (int i = 0; i < 16; i++) low[i] = (uint8_t)((q[i] & 15) | q[i + 16] << 4);
}
static inline void fifth_get(const uint8_t *high, uint8_t *q) {
  for (int i = 0; i < 32; i++) q[i] |= (uint8_t)((high[i / 8] >> i % 8 & 1) << 4);
}
static inline void fifth_put(uint8_t *high, const uint8_t *q) {
  memset(high, 0, 4);
  for (int i = 0; i < 32; i++) high[i / 8] |= (uint8_t)((q[i] >> 4 & 1) << i % 8);
}
static inline void codes_get_Q4_0(const block_Q4_0 *b, uint8_t *q) { nibbles_get(b->low, q); }
static inline void codes_put_Q4_0(block_Q4_0 *b, const uint8_t *q) { nibbles_put(b->low, q); }
static inline void codes_get_Q4_1(const block_Q4_1 *b, uint8_t *q) { nibbles_get(b->low, q); }
static inline void codes_put_Q4_1(block_Q4_1 *b, const uint8_t *q) { nibbles_put(b->low, q); }
static inline void codes_get_Q5_0(const block_Q5_0 *b, uint8_t *q) { nibbles_get(b->low, q), fifth_get(b->high, q); }
static inline void codes_put_Q5_0(block_Q5_0 *b, const uint8_t *q) { nibbles_put(b->low, q), fifth_put(b->high, q); }
static inline void codes_get_Q5_1(const block_Q5_1 *b, uint8_t *q) { nibbles_get(b->low, q), fifth_get(b->high, q); }
static inline void codes_put_Q5_1(block_Q5_1 *b, const uint8_t *q) { nibbles_put(b->low, q), fifth_put(b->high, q); }
static inline void codes_get_Q8_0(const block_Q8_0 *b, uint8_t *q) {
  for (int i = 0; i < 32; i++) q[i] = (uint8_t)(b->q[i] + 128);
}
static inline void codes_put_Q8_0(block_Q8_0 *b, const uint8_t *q) {
  for (int i = 0; i < 32; i++) b->q[i] = (int8_t)(q[i] - 128);
}

/* Minimum of a block; the types without one never ask. */
#define NO_MINIMUM(type)                                                        \
  static inline uint16_t min_get_##type(const block_##type *b) { return (void)b, (uint16_t)0; } \
  static inline void min_put_##type(block_##type *b, uint16_t m) { (void)b, (void)m; }
#define MINIMUM(type)                                                           \
  static inline uint16_t min_get_##type(const block_##type *b) { return b->m; } \
  static inline void min_put_##type(block_##type *b, uint16_t m) { b->m = m; }
NO_MINIMUM(Q4_0)
MINIMUM(Q4_1)
NO_MINIMUM(Q5_0)
MINIMUM(Q5_1)
NO_MINIMUM(Q8_0)

#endif
