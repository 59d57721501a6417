/* ARMv8.2 with the dot product instructions (Cortex-A76, Neoverse N1, Apple M1 and later). */
#include "../engine.h"
#if defined(__aarch64__)
#include <arm_neon.h>
#include <math.h>
#include <string.h>
#include "../lanes.h"
#if defined(__clang__)
TARGET_BEGIN("dotprod")
#else
TARGET_BEGIN("arch=armv8.2-a+dotprod")
#endif

IN int32x4_t dot4(int32x4_t s, int8x16_t w, int8x16_t a) { return vdotq_s32(s, w, a); }
#include "neon.h"

static int here(void) { return slm_cpu_has(SLM_CPU_DOTPROD); }
#define ISA neon_dot
#include "../bodies.inc"
TARGET_END
#endif
