/* Blocks of 4-bit floats under short float scales. Layouts as in ggml's ggml-common.h. */
#ifndef SLM_FORMATS_MX_H
#define SLM_FORMATS_MX_H
#include "legacy.h"

typedef struct { uint8_t e, low[16]; } block_MXFP4;    /* w = 2^(e - 128) table[q] */
typedef struct { uint8_t d[4], low[32]; } block_NVFP4; /* w = d / 2 table[q], d by 16 weights */
_Static_assert(sizeof(block_MXFP4) == 17 && sizeof(block_NVFP4) == 36, "ggml's sizes");

static inline void open_MXFP4(const block_MXFP4 *b, slm_block *o) {
  nibbles_get(b->low, 16, o->q);
  o->scale[0] = b->e ^ 128;
}
/* The top bit of a scale means nothing, and 0x7f, which is no number, counts as 0. */
static inline void open_NVFP4(const block_NVFP4 *b, slm_block *o) {
  for (int g = 0; g < 4; g++) {
    nibbles_get(b->low + 8 * g, 8, o->q + 16 * g);
    o->scale[g] = b->d[g] == 0x7f ? 0 : b->d[g] & 0x7f;
  }
}

#endif
