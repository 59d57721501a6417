/* Two 256-bit registers as 16 lanes: what avx2.c and avxvnni.c share. All but the dot product of codes. */
typedef struct { __m256 a, b; } vf;
typedef struct { __m256i a, b; } vi;
typedef vi vw;

#define BOTH1(T, f, x) ((T){f((x).a), f((x).b)})
#define BOTH2(T, f, x, y) ((T){f((x).a, (y).a), f((x).b, (y).b)})

IN vf vf_set(float x) { __m256 v = _mm256_set1_ps(x); return (vf){v, v}; }
IN vf vf_zero(void) { return (vf){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
IN vf vf_load(const float *p) { return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
IN void vf_store(float *p, vf v) { _mm256_storeu_ps(p, v.a); _mm256_storeu_ps(p + 8, v.b); }
IN __m256i first8(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
IN vf vf_loadn(const float *p, int n) {
  return (vf){_mm256_maskload_ps(p, first8(n)), _mm256_maskload_ps(p + 8, first8(n - 8))};
}
IN void vf_storen(float *p, vf v, int n) {
  _mm256_maskstore_ps(p, first8(n), v.a);
  _mm256_maskstore_ps(p + 8, first8(n - 8), v.b);
}
IN __m128i half(const void *p, int i) { return _mm_loadu_si128((const __m128i *)p + i); }
IN vf vf_f16(const void *p) { return (vf){_mm256_cvtph_ps(half(p, 0)), _mm256_cvtph_ps(half(p, 1))}; }
IN void vf_to_f16(void *p, vf v) {
  _mm_storeu_si128(p, _mm256_cvtps_ph(v.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128((__m128i *)p + 1, _mm256_cvtps_ph(v.b, _MM_FROUND_TO_NEAREST_INT));
}
IN __m256 bf16x8(__m128i h) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)); }
IN vf vf_bf16(const void *p) { return (vf){bf16x8(half(p, 0)), bf16x8(half(p, 1))}; }
IN vf vf_add(vf x, vf y) { return BOTH2(vf, _mm256_add_ps, x, y); }
IN vf vf_sub(vf x, vf y) { return BOTH2(vf, _mm256_sub_ps, x, y); }
IN vf vf_mul(vf x, vf y) { return BOTH2(vf, _mm256_mul_ps, x, y); }
IN vf vf_div(vf x, vf y) { return BOTH2(vf, _mm256_div_ps, x, y); }
IN vf vf_max(vf x, vf y) { return BOTH2(vf, _mm256_max_ps, x, y); }
IN vf vf_fma(vf x, vf y, vf z) { return (vf){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
IN __m256 pick8(__m256 v, int n, float other) {
  return _mm256_blendv_ps(_mm256_set1_ps(other), v, _mm256_castsi256_ps(first8(n)));
}
IN vf vf_first(vf v, int n, float other) { return (vf){pick8(v.a, n, other), pick8(v.b, n - 8, other)}; }
IN float vf_sum(vf v) {
  __m256 a = _mm256_add_ps(v.a, v.b);
  __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
IN float vf_top(vf v) {
  __m256 a = _mm256_max_ps(v.a, v.b);
  __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_max_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}

IN vi vi_set(int32_t x) { __m256i v = _mm256_set1_epi32(x); return (vi){v, v}; }
IN vi vi_add(vi x, vi y) { return BOTH2(vi, _mm256_add_epi32, x, y); }
IN vi vi_mul(vi x, vi y) { return BOTH2(vi, _mm256_mullo_epi32, x, y); }
IN vi vi_max(vi x, vi y) { return BOTH2(vi, _mm256_max_epi32, x, y); }
#define vi_shl(x, s) ((vi){_mm256_slli_epi32((x).a, s), _mm256_slli_epi32((x).b, s)})
IN vi vi_bits(vf x) { return BOTH1(vi, _mm256_castps_si256, x); }
IN vf vf_bits(vi x) { return BOTH1(vf, _mm256_castsi256_ps, x); }
IN vf vf_cvt(vi x) { return BOTH1(vf, _mm256_cvtepi32_ps, x); }
IN vi vi_round(vf x) { return BOTH1(vi, _mm256_cvtps_epi32, x); }
IN vi vi_abs_bits(vf x) { vi v = vi_bits(x), m = vi_set(0x7fffffff); return BOTH2(vi, _mm256_and_si256, v, m); }
IN vi vi_i8(const void *p) {
  __m128i v = half(p, 0);
  return (vi){_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))};
}
IN __m128i low_bytes(__m256i v) {
  const __m256i order = _mm256_set1_epi32(0x0c080400);
  v = _mm256_shuffle_epi8(v, order);
  return _mm_unpacklo_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}
IN void vi_to_i8(void *p, vi v) { _mm_storeu_si128(p, _mm_unpacklo_epi64(low_bytes(v.a), low_bytes(v.b))); }
IN void vi_to_i8_four(void *p, const vi *v) {
  __m256i *to = p;
  _mm256_storeu_si256(to, _mm256_packs_epi16(_mm256_packs_epi32(v[0].a, v[1].a), _mm256_packs_epi32(v[2].a, v[3].a)));
  _mm256_storeu_si256(to + 1, _mm256_packs_epi16(_mm256_packs_epi32(v[0].b, v[1].b), _mm256_packs_epi32(v[2].b, v[3].b)));
}
IN int32_t vi_sum(vi v) {
  __m256i a = _mm256_add_epi32(v.a, v.b);
  __m128i b = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  b = _mm_add_epi32(b, _mm_unpackhi_epi64(b, b));
  return _mm_cvtsi128_si32(b) + _mm_extract_epi32(b, 1);
}
IN int32_t vi_top(vi v) {
  __m256i a = _mm256_max_epi32(v.a, v.b);
  __m128i b = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  b = _mm_max_epi32(b, _mm_unpackhi_epi64(b, b));
  return _mm_cvtsi128_si32(_mm_max_epi32(b, _mm_srli_si128(b, 4)));
}
EACH_FOLDED(vi_sums, vi_sum)
EACH_FOLDED(vi_tops, vi_top)

IN vw vw_load(const void *p) { return (vw){_mm256_loadu_si256(p), _mm256_loadu_si256((const __m256i *)p + 1)}; }
IN void vw_store(void *p, vw w) { _mm256_storeu_si256(p, w.a); _mm256_storeu_si256((__m256i *)p + 1, w.b); }
IN vw vw_or(vw x, vw y) { return BOTH2(vw, _mm256_or_si256, x, y); }
IN vw vw_look(vw t, vw x) { return BOTH2(vw, _mm256_shuffle_epi8, t, x); }
#define vw_shl(x, s) ((vw){_mm256_slli_epi16((x).a, s), _mm256_slli_epi16((x).b, s)})
#define vw_shr(x, s) ((vw){_mm256_srli_epi16((x).a, s), _mm256_srli_epi16((x).b, s)})
IN __m256i low_byte(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi32(255)); }
#define vi_byte(w) ((vi){low_byte((w).a), low_byte((w).b)})
#define vw_next(w) ((vw){_mm256_srli_epi32((w).a, 8), _mm256_srli_epi32((w).b, 8)})
IN vw vw_and(vw x, int byte) { __m256i m = _mm256_set1_epi8((char)byte); vw y = {m, m}; return BOTH2(vw, _mm256_and_si256, x, y); }
IN __m256i four_codes(const int8_t *a) {
  int32_t four;
  memcpy(&four, a, 4);
  return _mm256_set1_epi32(four);
}
