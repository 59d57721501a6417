/* Probabilities as integers: e^d in units of 2^-40, rounded once, so that sums of them are exact and have no order. */
#ifndef SLM_WEIGHT_H
#define SLM_WEIGHT_H
#include <stdint.h>
#include <string.h>

enum { SLM_WEIGHT_BITS = 40 };
#define SLM_WEIGHT_LEAST (-40.0) /* e^-40 is far below half a unit, and k below stays small */

static inline uint64_t slm_double_bits(double v) { uint64_t u; memcpy(&u, &v, 8); return u; }
static inline double slm_bits_double(uint64_t u) { double v; memcpy(&v, &u, 8); return v; }

/* round(e^d * 2^40) for -40 <= d <= 0, of doubles D whose bits are U: one each, or vectors of them. e^d = 2^k e^r,
   |r| <= ln(2) / 2, e^r by its Taylor polynomial of degree 9: relative error below 1e-11. Adding 1.5 * 2^52 (then 2^52)
   rounds to an integer and leaves it in the low bits. */
#define SLM_WEIGHT(name, D, U)                                                                      \
  static inline U name(D d) {                                                                       \
    const double to_integer = 6755399441055744.0;                                                   \
    const D shifted = d * 1.4426950408889634 + to_integer;                                          \
    const D r = d - (shifted - to_integer) * 0.6931471805599453;                                    \
    D p = r * (1.0 / 362880.0) + 1.0 / 40320.0, power;                                              \
    U bits;                                                                                         \
    p = p * r + 1.0 / 5040.0;                                                                       \
    p = p * r + 1.0 / 720.0;                                                                        \
    p = p * r + 1.0 / 120.0;                                                                        \
    p = p * r + 1.0 / 24.0;                                                                         \
    p = p * r + 1.0 / 6.0;                                                                          \
    p = p * r + 0.5;                                                                                \
    p = p * r + 1.0;                                                                                \
    p = p * r + 1.0;                                                                                \
    memcpy(&bits, &shifted, sizeof bits);                                                           \
    bits = (bits + 1023 + SLM_WEIGHT_BITS) << 52;                                                   \
    memcpy(&power, &bits, sizeof power);                                                            \
    p = p * power + 4503599627370496.0;                                                             \
    memcpy(&bits, &p, sizeof bits);                                                                 \
    return bits & 0xfffffffffffffu;                                                                 \
  }
SLM_WEIGHT(slm_weight, double, uint64_t)

#endif
