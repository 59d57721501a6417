/* AVX-512 with VNNI (Ice Lake, Zen 4 and later). */
#include "../engine.h"
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>
#include "../lanes.h"
TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#include "avx512.h"

static int here(void) { return slm_cpu_has(SLM_CPU_AVX2 | SLM_CPU_AVX512 | SLM_CPU_AVX512VNNI); }
#define ISA avx512vnni
#include "../bodies.inc"
TARGET_END
#endif
