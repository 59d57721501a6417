/* The 16-lane machine in the compiler's own vectors, which any target can lower: slow, obvious, and what runs where
   nothing else does. A fused multiply-add is a call of fmaf for each lane. */
#include <math.h>
#include <string.h>
#include "../engine.h"
#include "../formats/f16.h"
#include "../lanes.h"
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi" /* no vector crosses a call */
#endif

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint8_t vw __attribute__((vector_size(64)));
typedef int16_t vs __attribute__((vector_size(64)));
typedef vi va;
#undef UNROLL /* keeps the code small: speed is not what this is for */
#define UNROLL
#define EACH for (int i = 0; i < 16; i++)
#define CODE8_SHIFT 7
#define TILE 2
#define PANELS 1
#define COLUMNS TILE
#define FOLD_STEPS(bits) 8

/* To nearest even, overflow to infinity, NaN stays NaN. */
IN uint16_t f32_to_f16(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  uint32_t sign = bits >> 16 & 0x8000, a = bits & 0x7fffffff;
  if (a > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (a >> 13 & 0x1ff));
  if (a >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
  if (a < 0x38800000) { /* below 2^-14: adding 0.5 leaves the fraction, rounded, in the low bits */
    float x;
    memcpy(&x, &a, 4);
    x += 0.5f;
    memcpy(&a, &x, 4);
    return (uint16_t)(sign | (a - 0x3f000000));
  }
  a += 0xc8000fff + (a >> 13 & 1);
  return (uint16_t)(sign | a >> 13);
}

IN vf vf_zero(void) { return (vf){0}; }
IN vf vf_set(float x) { return (vf){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
IN vf vf_load(const float *p) { vf r; memcpy(&r, p, 64); return r; }
IN void vf_store(float *p, vf a) { memcpy(p, &a, 64); }
IN vf vf_loadn(const float *p, int n) { vf r = {0}; memcpy(&r, p, (size_t)n * 4); return r; }
IN void vf_storen(float *p, vf a, int n) { memcpy(p, &a, (size_t)n * 4); }
IN vf vf_f16(const void *p) { uint16_t h[16]; vf r; memcpy(h, p, 32); EACH r[i] = slm_f16_to_f32(h[i]); return r; }
IN void vf_to_f16(void *p, vf a) { uint16_t h[16]; EACH h[i] = f32_to_f16(a[i]); memcpy(p, h, 32); }
IN vf vf_bf16(const void *p) { uint16_t h[16]; vi r; memcpy(h, p, 32); EACH r[i] = (int32_t)((uint32_t)h[i] << 16); return (vf)r; }
IN vf vf_add(vf a, vf b) { return a + b; }
IN vf vf_sub(vf a, vf b) { return a - b; }
IN vf vf_mul(vf a, vf b) { return a * b; }
IN vf vf_div(vf a, vf b) { return a / b; }
IN vf vf_max(vf a, vf b) { vi greater = a > b; return (vf)((greater & (vi)a) | (~greater & (vi)b)); }
IN vf vf_fma(vf a, vf b, vf c) { EACH c[i] = fmaf(a[i], b[i], c[i]); return c; }
IN vf vf_first(vf a, int n, float other) { EACH if (i >= n) a[i] = other; return a; }
IN float vf_sum(vf a) {
  for (int h = 8; h; h /= 2) for (int i = 0; i < h; i++) a[i] += a[i + h];
  return a[0];
}
IN float vf_top(vf a) { float t = a[0]; EACH t = t > a[i] ? t : a[i]; return t; }

IN vi vi_set(int32_t x) { return (vi){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
IN vi vi_i8(const void *p) { int8_t b[16]; vi r; memcpy(b, p, 16); EACH r[i] = b[i]; return r; }
IN void vi_to_i8(void *p, vi a) { int8_t b[16]; EACH b[i] = (int8_t)a[i]; memcpy(p, b, 16); }
IN void vi_to_i8_four(void *p, const vi *a) {
  for (int i = 0; i < 64; i++) ((int8_t *)p)[i] = (int8_t)a[i / 4 % 4][i / 16 * 4 + i % 4];
}
/* Integers wrap where they overflow, as in every other instruction set. */
typedef uint32_t vu __attribute__((vector_size(64)));
IN vi vi_add(vi a, vi b) { return (vi)((vu)a + (vu)b); }
IN vi vi_mul(vi a, vi b) { return (vi)((vu)a * (vu)b); }
IN vi vi_shl(vi a, int s) { return (vi)((vu)a << s); }
IN vi vi_max(vi a, vi b) { vi greater = a > b; return (greater & a) | (~greater & b); }
IN vi vi_round(vf a) { /* what has no int32 gives the least one, as on x86 */
  vi r;
  EACH r[i] = fabsf(a[i]) < 0x1p31f ? (int32_t)nearbyintf(a[i]) : INT32_MIN;
  return r;
}
IN vf vf_cvt(vi a) { return __builtin_convertvector(a, vf); }
IN vi vi_bits(vf a) { return (vi)a; }
IN vf vf_bits(vi a) { return (vf)a; }
IN vi vi_abs_bits(vf a) { return (vi)a & vi_set(0x7fffffff); }
IN int32_t vi_sum(vi a) { int32_t s = 0; EACH s += a[i]; return s; }
IN int32_t vi_top(vi a) { int32_t t = a[0]; EACH t = t > a[i] ? t : a[i]; return t; }
EACH_FOLDED(vi_sums, vi_sum)
EACH_FOLDED(vi_tops, vi_top)

IN vw vw_load(const void *p) { vw r; memcpy(&r, p, 64); return r; }
IN void vw_store(void *p, vw w) { memcpy(p, &w, 64); }
#define vw_code8 vw_load
IN vw vw_and(vw a, int m) { return a & (uint8_t)m; }
IN vw vw_or(vw a, vw b) { return a | b; }
IN vw vw_shl(vw a, int s) { return a << s; }
IN vw vw_shr(vw a, int s) { return a >> s; }
IN vw vw_look(vw t, vw a) { for (int i = 0; i < 64; i++) a[i] = t[a[i]]; return a; }
#define vi_byte(w) ((vi)((vu)(w) & 255))
#define vw_next(w) ((vw)((vu)(w) >> 8))
#define va_begin(c) (c)
#define va_end(s, c) (s)
#define va_dot(s, w, a, bits) va_dot_(s, w, a)
/* Codes 0 and 2 of each lane, and 1 and 3, as 16 bits; a product (255 · 127) fits. */
IN va va_dot_(va s, vw w, const int8_t *a) {
  vs even = (vs)((vu)w & 0x00ff00ff), odd = (vs)((vu)w >> 8 & 0x00ff00ff);
  vs a02 = (vs)vi_set((int32_t)((uint16_t)a[0] | (uint32_t)(uint16_t)a[2] << 16));
  vs a13 = (vs)vi_set((int32_t)((uint16_t)a[1] | (uint32_t)(uint16_t)a[3] << 16));
  vi x = (vi)(even * a02), y = (vi)(odd * a13);
  return s + (x >> 16) + (y >> 16) + ((vi)((vu)x << 16) >> 16) + ((vi)((vu)y << 16) >> 16);
}

static int here(void) { return 1; }
#define ISA scalar
#include "../bodies.inc"
