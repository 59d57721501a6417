/* GGUF rows to panels of 16 rows (formats/panel.h) and back, and rows to float32. */
#include "engine.h"
#include "formats/k.h"
#include "formats/legacy.h"

/* Codes of 32 elements of one row into (or out of) the planes of 16 rows; `p` is the row's own column. */
static inline void planes_put(int planes, const uint8_t *q, uint8_t *p) {
  if (planes == 8) {
    for (int v = 0; v < 8; v++) memcpy(p + 64 * v, q + 4 * v, 4);
    return;
  }
  uint8_t low[16], high[8] = {0};
  for (int i = 0; i < 16; i++) low[i] = (uint8_t)((q[i] & 15) | q[i + 16] << 4);
  for (int j = 0; j < 4; j++) memcpy(p + 64 * j, low + 4 * j, 4);
  if (planes == 4) return;
  for (int i = 0; i < 32; i++) {
    if (planes == 5) high[i % 4] |= (uint8_t)((q[i] >> 4 & 1) << i / 4);
    else high[i / 16 * 4 + i % 4] |= (uint8_t)((q[i] >> 4 & 3) << i % 16 / 4 * 2);
  }
  memcpy(p + 256, high, 4);
  if (planes == 6) memcpy(p + 320, high + 4, 4);
}
static inline void planes_get(int planes, const uint8_t *p, uint8_t *q) {
  if (planes == 8) {
    for (int v = 0; v < 8; v++) memcpy(q + 4 * v, p + 64 * v, 4);
    return;
  }
  for (int i = 0; i < 16; i++) {
    uint8_t byte = p[64 * (i / 4) + i % 4];
    q[i] = byte & 15, q[i + 16] = byte >> 4;
  }
  for (int i = 0; i < 32; i++) {
    if (planes == 5) q[i] |= (uint8_t)((p[256 + i % 4] >> i / 4 & 1) << 4);
    if (planes == 6) q[i] |= (uint8_t)((p[256 + i / 16 * 64 + i % 4] >> i % 16 / 4 * 2 & 3) << 4);
  }
}

/* The scales of row r, by kin: to the block's place in the panel, from it, and as floats that weights are made of. */
#define legacy_SCALES(type, zero, min)                                                              \
  static inline void scales_put_##type(const block_##type *b, slm_parts p, int r) {                 \
    uint16_t m = min_get_##type(b);                                                                 \
    memcpy(p.scales + 2 * r, &b->d, 2);                                                             \
    if (min) memcpy(p.mins + 2 * r, &m, 2);                                                         \
  }                                                                                                 \
  static inline void scales_get_##type(block_##type *b, slm_parts p, int r) {                       \
    uint16_t m = 0;                                                                                 \
    memcpy(&b->d, p.scales + 2 * r, 2);                                                             \
    if (min) memcpy(&m, p.mins + 2 * r, 2);                                                         \
    min_put_##type(b, m);                                                                           \
  }                                                                                                 \
  static inline void weights_##type(const block_##type *b, const uint8_t *q, float *w) {            \
    const float d = slm_f16_to_f32(b->d), m = slm_f16_to_f32(min_get_##type(b));                    \
    for (int j = 0; j < 32; j++) {                                                                  \
      const float x = d * (float)(q[j] - ZERO(zero));                                               \
      w[j] = (min) ? x + m : x;                                                                     \
    }                                                                                               \
  }
#define k16_SCALES(type, zero, min)                                                                 \
  static inline void scales_put_##type(const block_##type *b, slm_parts p, int r) {                 \
    for (int g = 0; g < 16; g++) p.small[16 * g + r] = (uint8_t)b->scale[g];                        \
    memcpy(p.scales + 2 * r, &b->d, 2);                                                             \
  }                                                                                                 \
  static inline void scales_get_##type(block_##type *b, slm_parts p, int r) {                       \
    for (int g = 0; g < 16; g++) b->scale[g] = (int8_t)p.small[16 * g + r];                         \
    memcpy(&b->d, p.scales + 2 * r, 2);                                                             \
  }                                                                                                 \
  static inline void weights_##type(const block_##type *b, const uint8_t *q, float *w) {            \
    for (int g = 0; g < 16; g++) {                                                                  \
      const float d = slm_f16_to_f32(b->d) * (float)b->scale[g];                                    \
      for (int j = 16 * g; j < 16 * g + 16; j++) w[j] = d * (float)(q[j] - ZERO(zero));             \
    }                                                                                               \
  }
#define k32_SCALES(type, zero, min)                                                                 \
  static inline void scales_put_##type(const block_##type *b, slm_parts p, int r) {                 \
    for (int w = 0; w < 3; w++) memcpy(p.small + 64 * w + 4 * r, b->small + 4 * w, 4);              \
    memcpy(p.scales + 2 * r, &b->d, 2);                                                             \
    memcpy(p.mins + 2 * r, &b->dmin, 2);                                                            \
  }                                                                                                 \
  static inline void scales_get_##type(block_##type *b, slm_parts p, int r) {                       \
    for (int w = 0; w < 3; w++) memcpy(b->small + 4 * w, p.small + 64 * w + 4 * r, 4);              \
    memcpy(&b->d, p.scales + 2 * r, 2);                                                             \
    memcpy(&b->dmin, p.mins + 2 * r, 2);                                                            \
  }                                                                                                 \
  static inline void weights_##type(const block_##type *b, const uint8_t *q, float *w) {            \
    uint8_t scale[8], least[8];                                                                     \
    six_bits_get(b->small, scale, least);                                                           \
    for (int g = 0; g < 8; g++) {                                                                   \
      const float d = slm_f16_to_f32(b->d) * (float)scale[g], m = slm_f16_to_f32(b->dmin) * (float)least[g]; \
      for (int j = 32 * g; j < 32 * g + 32; j++) w[j] = d * (float)(q[j] - ZERO(zero)) - m;         \
    }                                                                                               \
  }
#define ZERO(zero) ((zero) < 0 ? 0 : 1 << ((zero) < 0 ? 0 : (zero)))

/* Row r of a panel from a row of the file (NULL: zeros), and back; a row of the file as floats. */
#define FORMAT(type, kin, planes, zero, min)                                                        \
  kin##_SCALES(type, zero, min)                                                                     \
  static void put_##type(const uint8_t *source, int k, int r, uint8_t *panel) {                     \
    for (int i = 0; i < k / kin##_BLOCK; i++) {                                                     \
      block_##type b = {0};                                                                         \
      const slm_parts p = kin##_parts(panel, i, planes, min);                                       \
      uint8_t q[kin##_BLOCK], *codes = p.codes + 4 * r;                                  \
      if (source) memcpy(&b, source + i * sizeof b, sizeof b);                                      \
      codes_get_##type(&b, q);                                                                      \
      for (int g = 0; g < kin##_BLOCK / 32; g++) planes_put(planes, q + 32 * g, codes + g * 64 * (planes)); \
      scales_put_##type(&b, p, r);                                                                  \
    }                                                                                               \
  }                                                                                                 \
  static void get_##type(const uint8_t *panel, int k, int r, uint8_t *target) {                     \
    for (int i = 0; i < k / kin##_BLOCK; i++) {                                                     \
      block_##type b;                                                                               \
      const slm_parts p = kin##_parts(panel, i, planes, min);                                       \
      uint8_t q[kin##_BLOCK], *codes = p.codes + 4 * r;                                  \
      for (int g = 0; g < kin##_BLOCK / 32; g++) planes_get(planes, codes + g * 64 * (planes), q + 32 * g); \
      codes_put_##type(&b, q);                                                                      \
      scales_get_##type(&b, p, r);                                                                  \
      memcpy(target + i * sizeof b, &b, sizeof b);                                                  \
    }                                                                                               \
  }                                                                                                 \
  static void floats_##type(const uint8_t *source, int k, float *target) {                          \
    for (int i = 0; i < k / kin##_BLOCK; i++) {                                                     \
      block_##type b;                                                                               \
      uint8_t q[kin##_BLOCK];                                                                       \
      memcpy(&b, source + i * sizeof b, sizeof b);                                                  \
      codes_get_##type(&b, q);                                                                      \
      weights_##type(&b, q, target + i * kin##_BLOCK);                                              \
    }                                                                                               \
  }
#include "formats.inc"
#undef FORMAT

#define FLOAT_ROW(type, bytes)                                                                      \
  static void put_##type(const uint8_t *source, int k, int r, uint8_t *panel) {                     \
    for (int i = 0; i < k; i++, panel += PANEL * (bytes)) {                                         \
      if (source) memcpy(panel + r * (bytes), source + i * (bytes), bytes);                         \
      else memset(panel + r * (bytes), 0, bytes);                                                   \
    }                                                                                               \
  }                                                                                                 \
  static void get_##type(const uint8_t *panel, int k, int r, uint8_t *target) {                     \
    for (int i = 0; i < k; i++) memcpy(target + i * (bytes), panel + (i * PANEL + r) * (bytes), bytes); \
  }
FLOAT_ROW(F32, 4)
FLOAT_ROW(F16, 2)
FLOAT_ROW(BF16, 2)
static void floats_F32(const uint8_t *source, int k, float *target) { memcpy(target, source, (size_t)k * 4); }
static void floats_F16(const uint8_t *source, int k, float *target) {
  for (int i = 0; i < k; i++) {
    uint16_t h;
    memcpy(&h, source + 2 * i, 2);
    target[i] = slm_f16_to_f32(h);
  }
}
static void floats_BF16(const uint8_t *source, int k, float *target) {
  for (int i = 0; i < k; i++) {
    uint16_t h;
    memcpy(&h, source + 2 * i, 2);
    uint32_t bits = (uint32_t)h << 16;
    memcpy(target + i, &bits, 4);
  }
}

typedef struct {
  int block, bytes, act_block;  /* bytes of a block in the file */
  int unit, unit_bytes;         /* blocks in a unit of a panel, and its bytes */
  void (*put)(const uint8_t *source, int k, int r, uint8_t *panel);
  void (*get)(const uint8_t *panel, int k, int r, uint8_t *target);
  void (*floats)(const uint8_t *source, int k, float *target);
} format;
static const format formats[] = {
    [SLM_F32] = {1, 4, 0, 1, 64, put_F32, get_F32, floats_F32},
    [SLM_F16] = {1, 2, 0, 1, 32, put_F16, get_F16, floats_F16},
    [SLM_BF16] = {1, 2, 0, 1, 32, put_BF16, get_BF16, floats_BF16},
#define FORMAT(type, kin, planes, zero, min)                                                        \
  [SLM_##type] = {kin##_BLOCK, sizeof(block_##type), kin##_BLOCK, /* activations are rounded in blocks of the weights' */ \
                  kin##_UNIT, kin##_BYTES(planes, min), put_##type, get_##type, floats_##type},
#include "formats.inc"
#undef FORMAT
};

/* NULL for a type without panels, or a row length that its blocks do not divide. */
static const format *find(int32_t type, int32_t k) {
  if (type < 0 || type >= (int32_t)(sizeof formats / sizeof *formats) || !formats[type].block) return NULL;
  return k > 0 && k % formats[type].block == 0 ? formats + type : NULL;
}

int64_t slm_panel_bytes(int32_t type, int32_t k) {
  const format *f = find(type, k);
  return f ? ((int64_t)((k / f->block + f->unit - 1) / f->unit) * f->unit_bytes + 63) / 64 * 64 : 0;
}
int64_t slm_row_bytes(int32_t type, int32_t k) {
  const format *f = find(type, k);
  return f ? (int64_t)(k / f->block) * f->bytes : 0;
}
int32_t slm_act_block(int32_t type) {
  return type >= 0 && type < (int32_t)(sizeof formats / sizeof *formats) && formats[type].block ? formats[type].act_block : -1;
}
int64_t slm_act_row_bytes(int32_t act_block, int32_t k) {
  const int64_t codes_and_scales = k + 4LL * k / (act_block ? act_block : 1);
  int64_t bytes = act_block == 0 ? 4LL * k : codes_and_scales + (act_block == 256 ? 4LL * k / 16 + 16LL * k / 256 : 4LL * k / act_block);
  return (bytes + 63) / 64 * 64;
}

int32_t slm_pack(int32_t type, int32_t k, const uint8_t *source, const int32_t *rows, int32_t panels, uint8_t *target) {
  const format *f = find(type, k);
  if (!f) return SLM_E_TYPE;
  const int64_t row_bytes = slm_row_bytes(type, k), panel_bytes = slm_panel_bytes(type, k);
  for (int32_t p = 0; p < panels; p++, target += panel_bytes) {
    memset(target, 0, (size_t)panel_bytes);
    for (int r = 0; r < PANEL; r++) {
      int32_t row = rows[p * PANEL + r];
      f->put(row < 0 ? NULL : source + row * row_bytes, k, r, target);
    }
  }
  return SLM_OK;
}

int32_t slm_unpack(int32_t type, int32_t k, const uint8_t *packed, int64_t row, uint8_t *target) {
  const format *f = find(type, k);
  if (!f || row < 0) return f ? SLM_E_ARGUMENT : SLM_E_TYPE;
  f->get(packed + row / PANEL * slm_panel_bytes(type, k), k, (int)(row % PANEL), target);
  return SLM_OK;
}

int32_t slm_dequantise(int32_t type, int32_t k, const uint8_t *source, float *target) {
  const format *f = find(type, k);
  if (!f) return SLM_E_TYPE;
  f->floats(source, k, target);
  return SLM_OK;
}
