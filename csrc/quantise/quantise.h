/* What the quantiser's files share. quantise.c prepares tables and walks rows; <isa>.c gives a span of 256 weights its
   blocks, compiled from spans.inc for an instruction set each, with the same bits. */
#ifndef SLM_QUANTISE_H
#define SLM_QUANTISE_H
#include <string.h>

#include "../engine.h"
#include "../formats/f16.h"
#include "../lanes.h"

enum { SPAN = 256 }; /* weights that are searched together */

/* The numbers that codes stand for: the integers low … high, code 0 the lowest; or, where they are given, values whose
   midpoints are multiples of a half. */
typedef struct {
  float low, high;
  const float *near;   /* of i / 2 - 128 and what follows up to the next: the nearest value */
  const uint8_t *code; /* of the value i - 128 */
} codes;

/* Blocks of `type` from `count` weights x, each of which counts w. SLM_E_NONFINITE: a scale is beyond f16. `values` are
   those of the type, if it has any. */
typedef int32_t slm_span(int32_t type, const float *x, const float *w, int count, const codes *values, uint8_t *target);
slm_span slm_span_plain, slm_span_avx2;

/* f32 to f16, to nearest even; infinite beyond its range. */
static inline uint16_t f16_of(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude >= 0x477ff000) return (uint16_t)(sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00));
  if (magnitude < 0x38800000) { /* a denormal: the sum's last bit is 2^-24 */
    float a;
    memcpy(&a, &magnitude, 4);
    a += 0.5f;
    memcpy(&bits, &a, 4);
    return (uint16_t)(sign | (bits - 0x3f000000));
  }
  return (uint16_t)(sign | (magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13);
}
#endif
