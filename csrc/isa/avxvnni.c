/* AVX2 with VNNI in 256 bits (Alder Lake and later, Zen 5). */
#include "../engine.h"
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>
#include "../lanes.h"
TARGET_BEGIN("avx2,fma,f16c,avxvnni")
#include "avx2.h"

typedef vi va;
#define CODE8_SHIFT 7
#define TILE 4 /* eight integer sums in 16 registers; a block's float sums may wait in memory */
#define PANELS 1
#define COLUMNS 2
#define FOLD_STEPS(bits) 8
#define vw_code8 vw_load
#define va_begin(c) (c)
#define va_end(s, c) (s)
#define va_dot(s, w, a, bits) va_dot_(s, w, a)
IN va va_dot_(va s, vw w, const int8_t *a) {
  __m256i v = four_codes(a);
  return (va){_mm256_dpbusd_avx_epi32(s.a, w.a, v), _mm256_dpbusd_avx_epi32(s.b, w.b, v)};
}

static int here(void) { return slm_cpu_has(SLM_CPU_AVX2 | SLM_CPU_AVXVNNI); }
#define ISA avxvnni
#include "../bodies.inc"
TARGET_END
#endif
