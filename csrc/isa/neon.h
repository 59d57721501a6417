/* Four 128-bit registers as 16 lanes: what neon.c and neon_dot.c share. All but the dot product of codes. Codes of 8 bits
   are taken as signed, and all others fit a signed byte. */
typedef struct { float32x4_t v[4]; } vf;
typedef struct { int32x4_t v[4]; } vi;
typedef struct { uint8x16_t v[4]; } vw;
typedef vi va;
#define CODE8_SHIFT -1
#define TILE 4 /* 32 registers: per token four integer and four float sums */
#define PANELS 1
#define COLUMNS TILE
#define EACH UNROLL for (int i = 0; i < 4; i++)

IN vf vf_set(float x) { vf r; EACH r.v[i] = vdupq_n_f32(x); return r; }
IN vf vf_zero(void) { return vf_set(0); }
IN vf vf_load(const float *p) { vf r; EACH r.v[i] = vld1q_f32(p + 4 * i); return r; }
IN void vf_store(float *p, vf a) { EACH vst1q_f32(p + 4 * i, a.v[i]); }
IN vf vf_loadn(const float *p, int n) {
  float t[16] = {0};
  memcpy(t, p, (size_t)n * 4);
  return vf_load(t);
}
IN void vf_storen(float *p, vf a, int n) {
  float t[16];
  vf_store(t, a);
  memcpy(p, t, (size_t)n * 4);
}
IN vf vf_f16(const void *p) {
  vf r;
  EACH r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t *)p + 4 * i)));
  return r;
}
IN void vf_to_f16(void *p, vf a) { EACH vst1_u16((uint16_t *)p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i]))); }
IN vf vf_bf16(const void *p) {
  vf r;
  EACH r.v[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16((const uint16_t *)p + 4 * i), 16));
  return r;
}
IN vf vf_add(vf a, vf b) { EACH a.v[i] = vaddq_f32(a.v[i], b.v[i]); return a; }
IN vf vf_sub(vf a, vf b) { EACH a.v[i] = vsubq_f32(a.v[i], b.v[i]); return a; }
IN vf vf_mul(vf a, vf b) { EACH a.v[i] = vmulq_f32(a.v[i], b.v[i]); return a; }
IN vf vf_div(vf a, vf b) { EACH a.v[i] = vdivq_f32(a.v[i], b.v[i]); return a; }
IN vf vf_max(vf a, vf b) { /* b where one is no number, as on x86 */
  EACH a.v[i] = vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]);
  return a;
}
IN vf vf_fma(vf a, vf b, vf c) { EACH c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]); return c; }
IN vf vf_first(vf a, int n, float other) {
  float t[16];
  vf_store(t, a);
  for (int i = n < 0 ? 0 : n; i < 16; i++) t[i] = other;
  return vf_load(t);
}
IN float vf_sum(vf a) {
  float32x4_t s = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
  float32x2_t t = vadd_f32(vget_low_f32(s), vget_high_f32(s));
  return vget_lane_f32(t, 0) + vget_lane_f32(t, 1);
}
IN float vf_top(vf a) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[1]), vmaxq_f32(a.v[2], a.v[3]))); }

IN vi vi_set(int32_t x) { vi r; EACH r.v[i] = vdupq_n_s32(x); return r; }
IN vi vi_add(vi a, vi b) { EACH a.v[i] = vaddq_s32(a.v[i], b.v[i]); return a; }
IN vi vi_mul(vi a, vi b) { EACH a.v[i] = vmulq_s32(a.v[i], b.v[i]); return a; }
IN vi vi_max(vi a, vi b) { EACH a.v[i] = vmaxq_s32(a.v[i], b.v[i]); return a; }
IN vi vi_shl(vi a, int s) { EACH a.v[i] = vshlq_s32(a.v[i], vdupq_n_s32(s)); return a; }
IN vi vi_bits(vf a) { vi r; EACH r.v[i] = vreinterpretq_s32_f32(a.v[i]); return r; }
IN vf vf_bits(vi a) { vf r; EACH r.v[i] = vreinterpretq_f32_s32(a.v[i]); return r; }
IN vf vf_cvt(vi a) { vf r; EACH r.v[i] = vcvtq_f32_s32(a.v[i]); return r; }
IN vi vi_round(vf a) { vi r; EACH r.v[i] = vcvtnq_s32_f32(a.v[i]); return r; }
IN vi vi_abs_bits(vf a) { vi r; EACH r.v[i] = vreinterpretq_s32_f32(vabsq_f32(a.v[i])); return r; }
IN int32_t vi_sum(vi a) { return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3]))); }
IN int32_t vi_top(vi a) { return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.v[0], a.v[1]), vmaxq_s32(a.v[2], a.v[3]))); }
IN vi vi_i8(const void *p) {
  int8x16_t b = vld1q_s8(p);
  int16x8_t low = vmovl_s8(vget_low_s8(b)), high = vmovl_s8(vget_high_s8(b));
  return (vi){{vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)),
               vmovl_s16(vget_high_s16(high))}};
}
IN void vi_to_i8(void *p, vi a) {
  int16x8_t low = vcombine_s16(vmovn_s32(a.v[0]), vmovn_s32(a.v[1]));
  int16x8_t high = vcombine_s16(vmovn_s32(a.v[2]), vmovn_s32(a.v[3]));
  vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}
IN void vi_to_i8_four(void *p, const vi *a) {
  EACH {
    int16x8_t low = vcombine_s16(vmovn_s32(a[0].v[i]), vmovn_s32(a[1].v[i]));
    int16x8_t high = vcombine_s16(vmovn_s32(a[2].v[i]), vmovn_s32(a[3].v[i]));
    vst1q_s8((int8_t *)p + 16 * i, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
  }
}
EACH_FOLDED(vi_sums, vi_sum)
EACH_FOLDED(vi_tops, vi_top)

IN vw vw_load(const void *p) { vw r; EACH r.v[i] = vld1q_u8((const uint8_t *)p + 16 * i); return r; }
IN void vw_store(void *p, vw w) { EACH vst1q_u8((uint8_t *)p + 16 * i, w.v[i]); }
IN vw vw_code8(const void *p) { vw r = vw_load(p); EACH r.v[i] = veorq_u8(r.v[i], vdupq_n_u8(0x80)); return r; }
IN vw vw_and(vw a, int byte) { EACH a.v[i] = vandq_u8(a.v[i], vdupq_n_u8((uint8_t)byte)); return a; }
IN vw vw_or(vw a, vw b) { EACH a.v[i] = vorrq_u8(a.v[i], b.v[i]); return a; }
IN vw vw_look(vw t, vw a) { EACH a.v[i] = vqtbl1q_u8(t.v[0], a.v[i]); return a; }
IN uint8x16_t shift_left(uint8x16_t a, int s) { return vshlq_u8(a, vdupq_n_s8((int8_t)s)); }
IN vw vw_shl(vw a, int s) { EACH a.v[i] = shift_left(a.v[i], s); return a; }
IN vw vw_shr(vw a, int s) { EACH a.v[i] = shift_left(a.v[i], -s); return a; }
IN vi vi_byte(vw w) {
  vi r;
  for (int j = 0; j < 4; j++) r.v[j] = vreinterpretq_s32_u32(vandq_u32(vreinterpretq_u32_u8(w.v[j]), vdupq_n_u32(255)));
  return r;
}
IN vw vw_next(vw w) { EACH w.v[i] = vreinterpretq_u8_u32(vshrq_n_u32(vreinterpretq_u32_u8(w.v[i]), 8)); return w; }
IN int8x16_t four_codes(const int8_t *a) {
  int32_t four;
  memcpy(&four, a, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
#define FOLD_STEPS(bits) 8
#define va_begin(c) (c)
#define va_end(s, c) (s)
#define va_dot(s, w, a, bits) va_dot_(s, w, a)
IN va va_dot_(va s, vw w, const int8_t *a) {
  int8x16_t four = four_codes(a);
  EACH s.v[i] = dot4(s.v[i], vreinterpretq_s8_u8(w.v[i]), four);
  return s;
}
