/* Rows of float32 to blocks of a quantised type, in spans of 256 weights. */
#include "fpstate.h"
#include "quantise/quantise.h"

/* Weights in a block, bytes of it, and what its codes stand for where that is no integer. */
typedef struct { int32_t block, bytes; const int8_t *values; } kind;
static const int8_t iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const int8_t fp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
static const kind kinds[] = {
    [SLM_Q4_0] = {32, 18, 0},    [SLM_Q4_1] = {32, 20, 0},    [SLM_Q5_0] = {32, 22, 0},     [SLM_Q5_1] = {32, 24, 0},
    [SLM_Q2_K] = {256, 84, 0},   [SLM_Q3_K] = {256, 110, 0},  [SLM_Q4_K] = {256, 144, 0},   [SLM_Q5_K] = {256, 176, 0},
    [SLM_Q6_K] = {256, 210, 0},  [SLM_TQ1_0] = {256, 54, 0},  [SLM_TQ2_0] = {256, 66, 0},   [SLM_MXFP4] = {32, 17, fp4},
    [SLM_IQ4_NL] = {32, 18, iq4}, [SLM_IQ4_XS] = {256, 136, iq4}, [SLM_NVFP4] = {64, 36, fp4}, [SLM_Q1_0] = {128, 18, 0},
    [SLM_Q2_0] = {64, 18, 0},
};

typedef struct { codes c; float near[512]; uint8_t code[256]; } table;
static void table_fill(table *t, const int8_t *values) {
  t->c = (codes){0, 0, t->near, t->code};
  for (int j = 15; j >= 0; j--) { /* of two codes of one value the first stands */
    if (values[j] < t->c.low) t->c.low = values[j];
    if (values[j] > t->c.high) t->c.high = values[j];
    t->code[values[j] + 128] = (uint8_t)j;
  }
  for (int i = 0; i < 512; i++) {
    const float at = (float)(i - 256) / 2 + 0.25f;
    float nearest = 1e9f;
    for (int j = 0; j < 16; j++) {
      const float away = __builtin_fabsf(at - values[j]);
      if (away < nearest) nearest = away, t->near[i] = values[j];
    }
  }
}
/* How much each weight counts: alike; or, where its column's importance is known, by that and, more weakly, by its size:
   times √(s² + x²), s² being the mean square of the span. */
static void weigh(const float *x, const float *importance, int count, float *w) {
  float square = 0;
  for (int i = 0; importance && i < count; i++) square += x[i] * x[i];
  square /= (float)count;
  for (int i = 0; i < count; i++) w[i] = importance ? importance[i] * __builtin_sqrtf(square + x[i] * x[i]) : 1;
}

static int all_finite(const float *x, int count) {
  uint32_t bits, all = 0;
  for (int i = 0; i < count; i++) {
    memcpy(&bits, x + i, 4);
    all |= (bits & 0x7f800000) == 0x7f800000;
  }
  return !all;
}

/* Every x86 instruction set but the scalar one has AVX2. */
static slm_span *span_of(const slm_isa *isa) {
#if defined(__x86_64__)
  if (strcmp(isa->name, "scalar") != 0) return slm_span_avx2;
#endif
  return (void)isa, slm_span_plain;
}

static __attribute__((noinline)) int32_t rows_to_blocks(slm_span *span, int32_t type, int64_t rows, int32_t k, const float *x,
                                                         const float *importance, uint8_t *to) {
  const kind *f = kinds + type;
  table t;
  if (f->values) table_fill(&t, f->values);
  float w[SPAN];
  for (int64_t row = 0; row < rows; row++)
    for (int32_t at = 0; at < k; at += SPAN) {
      const int count = k - at < SPAN ? k - at : SPAN;
      if (!all_finite(x, count)) return SLM_E_NONFINITE;
      weigh(x, importance ? importance + at : NULL, count, w);
      const int32_t error = span(type, x, w, count, &t.c, to);
      if (error) return error;
      x += count, to += count / f->block * f->bytes;
    }
  return SLM_OK;
}

int32_t slm_quantise(const char *isa, int32_t type, int64_t rows, int32_t k, const float *x, const float *importance,
                     uint8_t *to) {
  if (type < 0 || type >= (int32_t)(sizeof kinds / sizeof *kinds) || !kinds[type].block) return SLM_E_TYPE;
  if (rows < 0 || k <= 0 || k % kinds[type].block) return SLM_E_ARGUMENT;
  const slm_isa *found = slm_isa_find(isa);
  if (!found) return SLM_E_ISA;
  const slm_fpstate before = slm_fpstate_enter();
  const int32_t error = rows_to_blocks(span_of(found), type, rows, k, x, importance, to);
  slm_fpstate_leave(before);
  return error;
}
