/* The lanes of AVX-512 with VNNI: one register is all 16. */
typedef __m512 vf;
typedef __m512i vi, vw, va;
#define CODE8_SHIFT 7
#define TILE 4
#define PANELS 2 /* 8 integer and 8 float sums of the 32 registers; the rest hold codes, a mask and scales */
#define COLUMNS 8
#define FOLD_STEPS(bits) 8
#define FIRST(n) ((__mmask16)((1u << (n)) - 1))

#define vf_zero _mm512_setzero_ps
#define vf_set _mm512_set1_ps
#define vf_load _mm512_loadu_ps
#define vf_store _mm512_storeu_ps
#define vf_add _mm512_add_ps
#define vf_sub _mm512_sub_ps
#define vf_mul _mm512_mul_ps
#define vf_div _mm512_div_ps
#define vf_max _mm512_max_ps
#define vf_fma _mm512_fmadd_ps
IN vf vf_loadn(const float *p, int n) { return _mm512_maskz_loadu_ps(FIRST(n), p); }
IN void vf_storen(float *p, vf v, int n) { _mm512_mask_storeu_ps(p, FIRST(n), v); }
IN vf vf_f16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256(p)); }
IN void vf_to_f16(void *p, vf v) { _mm256_storeu_si256(p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
IN vf vf_bf16(const void *p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16));
}
IN vf vf_first(vf v, int n, float other) { return _mm512_mask_blend_ps(FIRST(n), vf_set(other), v); }
IN __m256 upper(vf v) { return _mm512_extractf32x8_ps(v, 1); }
IN float vf_sum(vf v) {
  __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), upper(v));
  __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
IN float vf_top(vf v) { return _mm512_reduce_max_ps(v); }

#define vi_set _mm512_set1_epi32
#define vi_add _mm512_add_epi32
#define vi_mul _mm512_mullo_epi32
#define vi_max _mm512_max_epi32
#define vi_shl _mm512_slli_epi32
#define vi_bits _mm512_castps_si512
#define vf_bits _mm512_castsi512_ps
#define vf_cvt _mm512_cvtepi32_ps
#define vi_round _mm512_cvtps_epi32
#define vi_sum _mm512_reduce_add_epi32
#define vi_top _mm512_reduce_max_epi32
/* Lane i of the result is what `op` makes of all lanes of v[i]: by pairs of vectors, pairs of those, then 128 bits each. */
#define FOLD(name, op)                                                                              \
  IN vi name(const vi *v) {                                                                         \
    vi four[4];                                                                                     \
    UNROLL for (int i = 0; i < 4; i++) {                                                            \
      const vi *a = v + 4 * i;                                                                      \
      const vi low = op(_mm512_unpacklo_epi32(a[0], a[1]), _mm512_unpackhi_epi32(a[0], a[1]));      \
      const vi high = op(_mm512_unpacklo_epi32(a[2], a[3]), _mm512_unpackhi_epi32(a[2], a[3]));     \
      four[i] = op(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));             \
    }                                                                                               \
    UNROLL for (int i = 0; i < 4; i += 2)                                                           \
      four[i / 2] = op(_mm512_shuffle_i32x4(four[i], four[i + 1], 0x88), _mm512_shuffle_i32x4(four[i], four[i + 1], 0xdd)); \
    return op(_mm512_shuffle_i32x4(four[0], four[1], 0x88), _mm512_shuffle_i32x4(four[0], four[1], 0xdd)); \
  }
FOLD(vi_sums, vi_add)
FOLD(vi_tops, vi_max)
IN vi vi_i8(const void *p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128(p)); }
IN void vi_to_i8(void *p, vi v) { _mm_storeu_si128(p, _mm512_cvtepi32_epi8(v)); }
IN void vi_to_i8_four(void *p, const vi *v) {
  _mm512_storeu_si512(p, _mm512_packs_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3])));
}
IN vi vi_abs_bits(vf v) { return _mm512_and_si512(vi_bits(v), vi_set(0x7fffffff)); }

#define vw_load _mm512_loadu_si512
#define vw_code8 _mm512_loadu_si512
#define vw_store _mm512_storeu_si512
#define vw_or _mm512_or_si512
#define vw_look _mm512_shuffle_epi8
#define vw_shl _mm512_slli_epi16
#define vw_shr _mm512_srli_epi16
#define vi_byte(w) _mm512_and_si512(w, vi_set(255))
#define vw_next(w) _mm512_srli_epi32(w, 8)
IN vw vw_and(vw v, int byte) { return _mm512_and_si512(v, _mm512_set1_epi8((char)byte)); }
#define va_begin(c) (c)
#define va_end(s, c) (s)
#define va_dot(s, w, a, bits) va_dot_(s, w, a)
IN va va_dot_(va s, vw w, const int8_t *a) {
  int32_t four;
  memcpy(&four, a, 4);
  return _mm512_dpbusd_epi32(s, w, _mm512_set1_epi32(four));
}
