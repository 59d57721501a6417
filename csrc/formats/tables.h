/* What codes of formats with a table stand for: the value + 2^zero, four times, so that a vector of 64 bytes looks up 16
   bytes at a time. */
#ifndef SLM_FORMATS_TABLES_H
#define SLM_FORMATS_TABLES_H
#include <stdint.h>

#define FOUR(...) {__VA_ARGS__, __VA_ARGS__, __VA_ARGS__, __VA_ARGS__}
#define SIGNED(z, a, b, c, d, e, f, g, h) \
  FOUR(z + a, z + b, z + c, z + d, z + e, z + f, z + g, z + h, z - a, z - b, z - c, z - d, z - e, z - f, z - g, z - h)
#define TABLE static const uint8_t __attribute__((aligned(64), unused))

TABLE slm_iq4[64] = FOUR(1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241);
TABLE slm_e2m1[64] = SIGNED(16, 0, 1, 2, 3, 4, 6, 8, 12); /* twice the number */
TABLE slm_iq3xxs[64] = SIGNED(64, 4, 12, 20, 28, 36, 44, 52, 62);
TABLE slm_iq3s[64] = SIGNED(16, 1, 3, 5, 7, 9, 11, 13, 15);
/* Three bits: magnitude 0 … 2, and 4 for minus. */
TABLE slm_iq2[64] = FOUR(72, 89, 107, 64, 56, 39, 21, 64, 72, 89, 107, 64, 56, 39, 21, 64);
/* Eighths: -8, 0 or 8 and an eighth more; with 4 an eighth less. */
TABLE slm_iq1[64] = FOUR(9, 17, 25, 16, 7, 15, 23, 16, 9, 17, 25, 16, 7, 15, 23, 16);
TABLE slm_ones[64] = FOUR(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1);
#endif
