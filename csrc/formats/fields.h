/* Fields of the bytes of codes, eight bytes at a time: enough for packing at memory speed, on any compiler. */
#ifndef SLM_FORMATS_FIELDS_H
#define SLM_FORMATS_FIELDS_H
#include <stdint.h>
#include <string.h>

#define ALWAYS static inline __attribute__((always_inline)) /* with constants for what says which bits */
#define UNROLL _Pragma("GCC unroll 16")

ALWAYS uint64_t eight(const uint8_t *p) {
  uint64_t x;
  memcpy(&x, p, 8);
  return x;
}
/* The field of each byte that has `mask` at bit `from`, moved to bit `to`. */
ALWAYS uint64_t field(uint64_t x, int from, int mask, int to) {
  return (x >> from & 0x0101010101010101u * (uint64_t)mask) << to;
}
/* Of n bytes, a multiple of 8: as the codes, or beside what stands there. */
ALWAYS void fields_get(const uint8_t *p, int n, int from, int mask, uint8_t *q) {
  for (int i = 0; i < n; i += 8) {
    const uint64_t x = field(eight(p + i), from, mask, 0);
    memcpy(q + i, &x, 8);
  }
}
ALWAYS void fields_add(const uint8_t *p, int n, int from, int mask, int to, uint8_t *q) {
  for (int i = 0; i < n; i += 8) {
    const uint64_t x = field(eight(p + i), from, mask, to) | eight(q + i);
    memcpy(q + i, &x, 8);
  }
}
/* 8 bits to bit `to` of 8 bytes. */
ALWAYS uint64_t spread_1(int bits, int to) { /* a byte with any one bit and 0x7f has its top bit set */
  const uint64_t one = (uint64_t)bits * 0x0101010101010101u & 0x8040201008040201u;
  return field(one + 0x7f7f7f7f7f7f7f7fu, 7, 1, to);
}
/* 8 codes of 2 bits, and 4 of 4 bits, to a byte each. */
ALWAYS uint64_t spread_2(uint64_t x) {
  x = (x | x << 24) & 0x000000ff000000ffu, x = (x | x << 12) & 0x000f000f000f000fu;
  return (x | x << 6) & 0x0303030303030303u;
}
ALWAYS uint64_t spread_4(uint64_t x) {
  x = (x | x << 8) & 0x00ff00ffu;
  return (x | x << 4) & 0x0f0f0f0fu;
}
#endif
