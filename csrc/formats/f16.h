/* f16 to float32 in plain integer arithmetic, so that it is the same everywhere. */
#ifndef SLM_FORMATS_F16_H
#define SLM_FORMATS_F16_H
#include <stdint.h>
#include <string.h>

static inline float slm_f16_to_f32(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
  if (exponent == 0) { /* zero and denormals: fraction · 2^-24 is exact */
    float f = (float)fraction * 0x1p-24f;
    return sign ? -f : f;
  }
  uint32_t bits = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
#endif
