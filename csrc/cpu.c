/* What the CPU has, and whether the system saves its registers. Asked once. */
#if defined(__linux__)
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include "engine.h"

int slm_fetch_far;

#if defined(__x86_64__)
#include <cpuid.h>

static uint64_t enabled_state(void) {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

/* The system saves the tiles (XCR0 bits 17 and 18), 8 KB of state for each thread, only for who asks. */
static int tiles_allowed(uint64_t state) {
#if SLM_WITH_AMX
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
  return (state >> 17 & 3) == 3 && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
#else
  return (void)state, 0;
#endif
}

/* Bits: Intel SDM volume 2, CPUID leaves 1 and 7. */
static int detect(void) {
  uint32_t a, b, c, d;
  if (!__get_cpuid(0, &a, &b, &c, &d)) return 0;
  slm_fetch_far = b == 0x68747541; /* "Auth" of AuthenticAMD */
  if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
  const uint32_t fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29, need = fma | osxsave | avx | f16c;
  if ((c & need) != need) return 0;
  uint64_t state = enabled_state();
  if ((state & 0x6) != 0x6) return 0; /* XMM and YMM */
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b >> 5 & 1)) return 0;
  int has = SLM_CPU_AVX2;
  if ((state & 0xe0) == 0xe0) { /* opmask and both halves of ZMM */
    const uint32_t f = 1u << 16, dq = 1u << 17, bw = 1u << 30, vl = 1u << 31;
    if ((b & (f | dq | bw | vl)) == (f | dq | bw | vl)) has |= SLM_CPU_AVX512;
    if (c >> 11 & 1) has |= SLM_CPU_AVX512VNNI;
    if ((d >> 24 & 3) == 3 && tiles_allowed(state)) has |= SLM_CPU_AMX;
  }
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1)) has |= SLM_CPU_AVXVNNI;
  return has;
}
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
static int detect(void) { return getauxval(AT_HWCAP) >> 20 & 1 ? SLM_CPU_DOTPROD : 0; }
#elif defined(__aarch64__) && defined(__APPLE__)
static int detect(void) { return SLM_CPU_DOTPROD; } /* every Apple CPU that runs macOS */
#else
static int detect(void) { return 0; }
#endif

int slm_cpu_has(int features) {
  static int known = -1;
  int has = __atomic_load_n(&known, __ATOMIC_RELAXED);
  if (has < 0) __atomic_store_n(&known, has = detect(), __ATOMIC_RELAXED);
  return (has & features) == features;
}
