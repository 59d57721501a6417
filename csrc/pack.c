/* GGUF rows to panels of 16 rows (formats/panel.h), and rows of either to float32. */
#include "engine.h"
#include "formats/f16.h"
#include "formats/iq.h"
#include "formats/k.h"
#include "formats/legacy.h"
#include "formats/mx.h"
#include "formats/ternary.h"

/* Codes of 32 elements of one row into the planes of 16 rows; `p` is the row's own column: 4 bytes of each vector. */
ALWAYS void words_put(uint64_t two, uint8_t *p) {
  const uint32_t first = (uint32_t)two, second = (uint32_t)(two >> 32);
  memcpy(p, &first, 4), memcpy(p + 64, &second, 4);
}
ALWAYS void pairs_put(const uint64_t *q, int from, uint8_t *p) {
  UNROLL for (int u = 0; u < 2; u++, p += 64) {
    const uint64_t x = field(q[2 * u], from, 3, 0) | field(q[2 * u + 1], from, 3, 4);
    const uint32_t pairs = (uint32_t)x | (uint32_t)(x >> 32) << 2;
    memcpy(p, &pairs, 4);
  }
}
ALWAYS void bits_put(const uint64_t *q, int from, uint8_t *p) {
  uint64_t x = 0;
  UNROLL for (int i = 0; i < 4; i++) x |= field(q[i], from, 1, 2 * i);
  const uint32_t bits = (uint32_t)x | (uint32_t)(x >> 32) << 1;
  memcpy(p, &bits, 4);
}
ALWAYS void planes_put(const int planes, const uint8_t *codes, uint8_t *p) {
  const uint64_t q[4] = {eight(codes), eight(codes + 8), eight(codes + 16), eight(codes + 24)};
  if (planes == 8)
    UNROLL for (int i = 0; i < 4; i++) words_put(q[i], p + 128 * i);
  if (planes >= 4 && planes < 8)
    UNROLL for (int i = 0; i < 2; i++) words_put(field(q[i], 0, 15, 0) | field(q[i + 2], 0, 15, 4), p + 128 * i);
  if (planes == 2 || planes == 3) pairs_put(q, 0, p);
  if (planes == 6) pairs_put(q, 4, p + 256);
  if (planes == 5) bits_put(q, 4, p + 256);
  if (planes == 3) bits_put(q, 2, p + 128);
  if (planes == 1) bits_put(q, 1, p);
}

/* And back. */
static inline void bits_get(const uint8_t *p, int to, uint8_t *q) {
  for (int i = 0; i < 32; i++) q[i] |= (uint8_t)((p[i % 4] >> i / 4 & 1) << to);
}
static inline void pairs_take(const uint8_t *p, int to, uint8_t *q) {
  for (int i = 0; i < 32; i++) q[i] |= (uint8_t)((p[i / 16 * 64 + i % 4] >> i % 16 / 4 * 2 & 3) << to);
}
static inline void planes_get(const int planes, const uint8_t *p, uint8_t *q) {
  memset(q, 0, 32);
  if (planes == 8)
    for (int v = 0; v < 8; v++) memcpy(q + 4 * v, p + 64 * v, 4);
  else if (planes >= 4)
    for (int i = 0; i < 16; i++) q[i] = p[i / 4 * 64 + i % 4] & 15, q[i + 16] = p[i / 4 * 64 + i % 4] >> 4;
  if (planes == 2 || planes == 3) pairs_take(p, 0, q);
  if (planes == 6) pairs_take(p + 256, 4, q);
  if (planes == 5) bits_get(p + 256, 4, q);
  if (planes == 3) bits_get(p + 128, 2, q);
  if (planes == 1) bits_get(p, 1, q);
}

/* A row's n bytes of scales, into (or out of) those of 16 rows, `word` bytes of each together. */
ALWAYS void scales_put(const uint8_t *own, int n, int word, int r, uint8_t *p) {
  for (int i = 0; i < n; i += word) memcpy(p + i * PANEL + r * word, own + i, (size_t)word);
}
static inline void scales_get(const uint8_t *p, int n, int word, int r, uint8_t *own) {
  for (int i = 0; i < n; i += word) memcpy(own + i, p + i * PANEL + r * word, (size_t)word);
}
static inline int small_word(const slm_kin kin) { return kin.small == 12 && kin.group == 32 ? 4 : 1; }
static inline int scale_word(const slm_kin kin) { return kin.scale == 2 ? 2 : 1; }

/* Block b of a unit, row r: to the panel and from it. */
ALWAYS void block_put(const slm_form f, const slm_block *o, slm_unit_at u, int b, int r) {
  const slm_kin k = f.kin;
  uint8_t *codes = u.codes + b * u.step + 4 * r;
  for (int g = 0; g < k.block / 32; g++) planes_put(f.planes, o->q + 32 * g, codes + g * 64 * f.planes);
  scales_put(o->small, k.small, small_word(k), r, u.small + b * u.step);
  scales_put(o->scale, k.scale, scale_word(k), r, u.scales + b * k.scale * PANEL);
  scales_put(o->least, k.least, 2, r, u.mins + b * k.least * PANEL);
}
static inline void block_get(const slm_form f, slm_block *o, slm_unit_at u, int b, int r) {
  const slm_kin k = f.kin;
  const uint8_t *codes = u.codes + b * u.step + 4 * r;
  for (int g = 0; g < k.block / 32; g++) planes_get(f.planes, codes + g * 64 * f.planes, o->q + 32 * g);
  scales_get(u.small + b * u.step, k.small, small_word(k), r, o->small);
  scales_get(u.scales + b * k.scale * PANEL, k.scale, scale_word(k), r, o->scale);
  scales_get(u.mins + b * k.least * PANEL, k.least, 2, r, o->least);
}

static inline float f16_of(const uint8_t *p) {
  uint16_t h;
  memcpy(&h, p, 2);
  return slm_f16_to_f32(h);
}
static inline float float_of(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
/* The scale of group g of `group` weights, without the block's. */
static inline int small_scale(const slm_kin k, const slm_block *o, int g) {
  const int byte = g / 8 * 4 + g % 4, nibble = o->small[byte % 8] >> g % 8 / 4 * 4 & 15;
  if (k.least) return o->small[g] & 15;
  if (k.small == 12) return (nibble | (o->small[8 + g % 4] >> g / 4 * 2 & 3) << 4) - 32;
  return k.small * k.group / 32 == 4 ? 2 * nibble + 1 : (int8_t)o->small[g];
}
/* The scale of group g, and what is taken from its weights. */
static inline float group_scale(const slm_form f, const slm_block *o, int g, float *least) {
  const slm_kin k = f.kin;
  *least = 0;
  if (k.scale == 1) { /* 2^(e - 128) as a float's bits, below 2 a denormal's */
    const uint32_t e = o->scale[0] ^ 128u;
    return float_of(e < 2 ? 0x200000u << e : (e - 1) << 23);
  }
  if (k.scale == 4) return float_of((uint32_t)o->scale[g] << 20) * 0x1p119f;
  const float d = f16_of(o->scale) * f.part;
  if (!k.small) return *least = k.least ? -f16_of(o->least) : 0, d;
  if (small_word(k) == 4) {
    uint8_t scale[8], under[8];
    six_bits_get(o->small, scale, under);
    return *least = f16_of(o->least) * (float)under[g], d * (float)scale[g];
  }
  if (k.least) *least = f16_of(o->least) * (float)(o->small[g] >> 4);
  return d * (float)small_scale(k, o, g);
}
static inline void block_floats(const slm_form f, const slm_block *o, float *w) {
  const int zero = f.zero < 0 ? 0 : 1 << f.zero, length = f.kin.group ? f.kin.group : f.kin.block;
  for (int g = 0; g < f.kin.block / length; g++) {
    float least;
    const float d = group_scale(f, o, g, &least);
    for (int i = g * length; i < (g + 1) * length; i++) {
      const float x = d * (float)((f.table ? f.table[o->q[i]] : o->q[i]) - zero);
      w[i] = f.kin.least ? x - least : x;
    }
  }
}

/* A panel from the rows of a file, -1 being one of zeros: block by block, as a panel may be larger than the first-level
   cache; row r of it as floats; a row of the file as floats. */
#define ROWS(type, form)                                                                            \
  static void put_##type(const uint8_t *source, const int32_t *rows, int64_t row_bytes, int k, uint8_t *panel) { \
    static const block_##type none;                                                                 \
    for (int left = k / form.kin.block; left > 0;) {                                                \
      const slm_unit_at u = slm_panel_unit(panel, left, form);                                      \
      memset(panel, 0, (size_t)u.head);                                                             \
      for (int j = 0; j < u.blocks; j++, source += sizeof none)                                     \
        for (int r = 0; r < PANEL; r++) {                                                           \
          slm_block o;                                                                              \
          open_##type(rows[r] < 0 ? &none : (const void *)(source + rows[r] * row_bytes), &o);      \
          block_put(form, &o, u, j, r);                                                             \
        }                                                                                           \
      panel += u.bytes, left -= u.blocks;                                                           \
    }                                                                                               \
  }                                                                                                 \
  static void get_##type(const uint8_t *panel, int k, int r, float *target) {                       \
    for (int left = k / form.kin.block; left > 0;) {                                                \
      const slm_unit_at u = slm_panel_unit(panel, left, form);                                      \
      for (int j = 0; j < u.blocks; j++, target += form.kin.block) {                                \
        slm_block o;                                                                                \
        block_get(form, &o, u, j, r);                                                               \
        block_floats(form, &o, target);                                                             \
      }                                                                                             \
      panel += u.bytes, left -= u.blocks;                                                           \
    }                                                                                               \
  }                                                                                                 \
  static void floats_##type(const uint8_t *source, int k, float *target) {                          \
    for (int i = 0; i < k / form.kin.block; i++, source += sizeof(block_##type), target += form.kin.block) { \
      block_##type b;                                                                               \
      slm_block o;                                                                                  \
      memcpy(&b, source, sizeof b);                                                                 \
      open_##type(&b, &o);                                                                          \
      block_floats(form, &o, target);                                                               \
    }                                                                                               \
  }
#define FORMAT(type, ...) ROWS(type, form_##type)
#define SAME(type, as) ROWS(type, form_##as)
#include "formats.inc"
#undef FORMAT
#undef SAME

/* Of a float type: `bytes` of an element in the file, and in a panel (of F64 its F32). */
static inline void keep_F32(const uint8_t *p, void *t) { memcpy(t, p, 4); }
static inline void keep_F16(const uint8_t *p, void *t) { memcpy(t, p, 2); }
static inline void keep_BF16(const uint8_t *p, void *t) { memcpy(t, p, 2); }
static inline void keep_F64(const uint8_t *p, void *t) {
  double x;
  memcpy(&x, p, 8);
  const float f = (float)x;
  memcpy(t, &f, 4);
}
static inline float value_F32(const uint8_t *p) {
  float f;
  memcpy(&f, p, 4);
  return f;
}
static inline float value_F16(const uint8_t *p) { return f16_of(p); }
static inline float value_BF16(const uint8_t *p) { return float_of((uint32_t)p[0] << 16 | (uint32_t)p[1] << 24); }
#define FLOAT_ROWS(type, bytes, held, value)                                                        \
  static void put_##type(const uint8_t *source, const int32_t *rows, int64_t row_bytes, int k, uint8_t *panel) { \
    static const uint8_t none[32 * (bytes)];                                                        \
    for (int at = 0; at < k; at += 32)                                                              \
      for (int r = 0; r < PANEL; r++) {                                                             \
        const uint8_t *own = rows[r] < 0 ? none : source + rows[r] * row_bytes + at * (bytes);      \
        uint8_t *p = panel + (at * PANEL + r) * (held);                                             \
        for (int i = 0; i < 32 && i < k - at; i++) keep_##type(own + i * (bytes), p + i * PANEL * (held)); \
      }                                                                                             \
    memset(panel + k * PANEL * (held), 0, (size_t)(-(k * PANEL * (held)) & 63));                    \
  }                                                                                                 \
  static void get_##type(const uint8_t *panel, int k, int r, float *target) {                       \
    for (int i = 0; i < k; i++) target[i] = value(panel + (i * PANEL + r) * (held));                \
  }                                                                                                 \
  static void floats_##type(const uint8_t *source, int k, float *target) {                          \
    for (int i = 0; i < k; i++) {                                                                   \
      uint8_t x[4];                                                                                 \
      keep_##type(source + i * (bytes), x);                                                         \
      target[i] = value(x);                                                                         \
    }                                                                                               \
  }
FLOAT_ROWS(F32, 4, 4, value_F32)
FLOAT_ROWS(F16, 2, 2, value_F16)
FLOAT_ROWS(BF16, 2, 2, value_BF16)
FLOAT_ROWS(F64, 8, 4, value_F32)

typedef struct {
  int bytes;        /* of a block in the file; 0 for a type without panels */
  int float_bytes;  /* of an element in a panel of a float type, else 0 */
  const slm_form *form;
  void (*put)(const uint8_t *source, const int32_t *rows, int64_t row_bytes, int k, uint8_t *panel);
  void (*get)(const uint8_t *panel, int k, int r, float *target);
  void (*floats)(const uint8_t *source, int k, float *target);
} format;
static const format formats[] = {
    [SLM_F32] = {4, 4, NULL, put_F32, get_F32, floats_F32},
    [SLM_F16] = {2, 2, NULL, put_F16, get_F16, floats_F16},
    [SLM_BF16] = {2, 2, NULL, put_BF16, get_BF16, floats_BF16},
    [SLM_F64] = {8, 4, NULL, put_F64, get_F64, floats_F64},
#define ROW(type, form) {sizeof(block_##type), 0, &form, put_##type, get_##type, floats_##type}
#define FORMAT(type, ...) [SLM_##type] = ROW(type, form_##type),
#define SAME(type, as) [SLM_##type] = ROW(type, form_##as),
#include "formats.inc"
#undef FORMAT
#undef SAME
};
static int block_of(const format *f) { return f->form ? f->form->kin.block : 1; }

/* NULL for a type without panels, or a row length that its blocks do not divide. */
static const format *find(int32_t type, int32_t k) {
  if (type < 0 || type >= (int32_t)(sizeof formats / sizeof *formats) || !formats[type].bytes) return NULL;
  return k > 0 && k % block_of(formats + type) == 0 ? formats + type : NULL;
}

int64_t slm_panel_bytes(int32_t type, int32_t k) {
  const format *f = find(type, k);
  if (!f) return 0;
  if (!f->form) return ((int64_t)k * f->float_bytes * PANEL + 63) / 64 * 64;
  const int blocks = k / f->form->kin.block, most = slm_unit_blocks(f->form->kin);
  return blocks / most * slm_unit_bytes(*f->form, most) + slm_unit_bytes(*f->form, blocks % most);
}
int64_t slm_row_bytes(int32_t type, int32_t k) {
  const format *f = find(type, k);
  return f ? (int64_t)(k / block_of(f)) * f->bytes : 0;
}
int32_t slm_act_block(int32_t type) {
  const int known = type >= 0 && type < (int32_t)(sizeof formats / sizeof *formats) && formats[type].bytes;
  return !known ? -1 : formats[type].form ? formats[type].form->kin.act : 0;
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
  for (int32_t p = 0; p < panels; p++, target += panel_bytes) f->put(source, rows + p * PANEL, row_bytes, k, target);
  return SLM_OK;
}

int32_t slm_unpack(int32_t type, int32_t k, const uint8_t *packed, int64_t row, float *target) {
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
