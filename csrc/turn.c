/* Angles of RoPE, in double and in our own arithmetic, so that every machine gets the same bits. */
#include "engine.h"

/* sin and cos for |x| < 2^31: x = n π/2 + r with π/2 in three parts of 33 bits, so that n times each of the first two is
   exact (Cody and Waite); then the Taylor series about 0 for |r| ≤ π/4, whose next terms are below 2^-53. */
static void sin_cos(double x, double *sine, double *cosine) {
  const double half_pi_1 = 0x1.921fb544p+0, half_pi_2 = 0x1.0b4611a6p-34, half_pi_3 = 0x1.3198a2e037073p-69;
  double scaled = x * 0x1.45f306dc9c883p-1;
  int64_t n = (int64_t)(scaled + (scaled < 0 ? -0.5 : 0.5));
  double whole = (double)n, r = ((x - whole * half_pi_1) - whole * half_pi_2) - whole * half_pi_3, z = r * r;
  double s = 1.0 / 355687428096000.0, c = -1.0 / 6402373705728000.0; /* 1/17!, -1/18! */
  static const double sines[] = {-1.0 / 1307674368000.0, 1.0 / 6227020800.0, -1.0 / 39916800.0, 1.0 / 362880.0,
                                 -1.0 / 5040.0, 1.0 / 120.0, -1.0 / 6.0};
  static const double cosines[] = {1.0 / 20922789888000.0, -1.0 / 87178291200.0, 1.0 / 479001600.0, -1.0 / 3628800.0,
                                   1.0 / 40320.0, -1.0 / 720.0, 1.0 / 24.0, -0.5};
  for (int i = 0; i < 7; i++) s = s * z + sines[i];
  for (int i = 0; i < 8; i++) c = c * z + cosines[i];
  s = r + r * z * s, c = 1.0 + z * c;
  *sine = n & 1 ? c : s, *cosine = n & 1 ? s : c;
  if (n & 2) *sine = -*sine;
  if ((n + 1) & 2) *cosine = -*cosine;
}

void slm_turns(int32_t position, const double *frequency, int32_t half, float magnitude, float *out) {
  for (int32_t i = 0; i < half; i++) {
    double sine, cosine;
    sin_cos((double)position * frequency[i], &sine, &cosine);
    out[i] = (float)(cosine * (double)magnitude);
    out[half + i] = (float)(sine * (double)magnitude);
  }
}
