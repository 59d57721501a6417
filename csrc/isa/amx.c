/* AMX (Sapphire Rapids and later): tiles of 8 and 16 tokens go to the matrix unit (amx.inc), the rest is AVX-512. */
#include "../engine.h"
#if SLM_WITH_AMX
#include <immintrin.h>
#include <math.h>
#include <string.h>
#include "../lanes.h"
TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,amx-tile,amx-int8")
#include "avx512.h"
#define ACT_TILE 16
#define ACT_BYTES (1 << 20) /* every CPU with AMX has 2 MB of second-level cache a core */
#define FETCH_FAR 0 /* Intel's alone */

static int here(void) { return slm_cpu_has(SLM_CPU_AVX2 | SLM_CPU_AVX512 | SLM_CPU_AVX512VNNI | SLM_CPU_AMX); }
#define ISA amx
#define MATRIX_UNIT "amx.inc"
#include "../bodies.inc"
TARGET_END
#endif
