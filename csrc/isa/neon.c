/* ARMv8.0: products in 16 bits, added in pairs (2 · 128 · 127 fits), then widened. */
#include "../engine.h"
#if defined(__aarch64__)
#include <arm_neon.h>
#include <math.h>
#include <string.h>
#include "../lanes.h"

IN int32x4_t dot4(int32x4_t s, int8x16_t w, int8x16_t a) {
  int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(a)), high = vmull_s8(vget_high_s8(w), vget_high_s8(a));
  return vpadalq_s16(s, vpaddq_s16(low, high));
}
#include "neon.h"

static int here(void) { return 1; }
#define ISA neon
#include "../bodies.inc"
#endif
