/* The search on AVX2: 8 lanes are one register. */
#include "blocks.h"
#if defined(__x86_64__)
TARGET_BEGIN("avx2")
#define SPAN_NAME slm_span_avx2
#include "spans.inc"
TARGET_END
#endif
