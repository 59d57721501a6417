/* AVX2 with FMA and F16C (Haswell, Zen 1 and later). Pairs of products are added in 16 bits, so codes of fewer bits can
   be summed for longer before they are widened; codes of 8 bits are taken as signed, their sign moved to the activation,
   since 255 · 127 · 2 would not fit. */
#include "../engine.h"
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>
#include "../lanes.h"
TARGET_BEGIN("avx2,fma,f16c")
#include "avx2.h"

typedef vi va;
#define CODE8_SHIFT -1
#define TILE 4 /* eight integer sums in 16 registers; a block's float sums may wait in memory */
#define PANELS 1
#define COLUMNS 2
/* 2 · 127 · (2^bits - 1) · steps ≤ 32767 */
#define FOLD_STEPS(bits) ((bits) <= 4 ? 8 : (bits) == 5 ? 4 : (bits) == 6 ? 2 : 1)

IN vw vw_code8(const void *p) {
  vw w = vw_load(p), sign = {_mm256_set1_epi8((char)0x80), _mm256_set1_epi8((char)0x80)};
  return BOTH2(vw, _mm256_xor_si256, w, sign);
}
#define va_begin(c) ((va){_mm256_setzero_si256(), _mm256_setzero_si256()})
/* As it is. GCC would make trees of sums, whose leaves do not fit the registers. */
IN __m256i in_turn(__m256i sum) {
  __asm__("" : "+x"(sum));
  return sum;
}
IN __m256i widen(__m256i s, __m256i c) {
  return in_turn(_mm256_add_epi32(c, _mm256_madd_epi16(s, _mm256_set1_epi16(1))));
}
IN vi va_end(va s, vi c) { return BOTH2(vi, widen, s, c); }
IN __m256i dot_half(__m256i s, __m256i w, __m256i a, int bits) {
  __m256i p = bits == 8 ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w)) : _mm256_maddubs_epi16(w, a);
  return in_turn(_mm256_add_epi16(s, p));
}
IN va va_dot(va s, vw w, const int8_t *a, int bits) {
  __m256i v = four_codes(a);
  return (va){dot_half(s.a, w.a, v, bits), dot_half(s.b, w.b, v, bits)};
}

static int here(void) { return slm_cpu_has(SLM_CPU_AVX2); }
#define ISA avx2
#include "../bodies.inc"
TARGET_END
#endif
