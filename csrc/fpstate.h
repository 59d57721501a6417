/* The floating-point state of the arithmetic that is the same on every machine: round to nearest even, denormals kept,
   no traps. Other libraries change it, so it is set on entry and the caller's is put back. What computes between the two
   calls belongs in a function of its own, out of line, so that no arithmetic moves across them. */
#ifndef SLM_FPSTATE_H
#define SLM_FPSTATE_H
#include <stdint.h>

#if defined(__x86_64__)
typedef uint32_t slm_fpstate;
static inline slm_fpstate slm_fpstate_enter(void) {
  slm_fpstate before = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(0x1f80);
  return before;
}
/* The exception flags that were raised meanwhile stay raised. */
static inline void slm_fpstate_leave(slm_fpstate before) {
  __builtin_ia32_ldmxcsr((__builtin_ia32_stmxcsr() & 0x3f) | before);
}
#elif defined(__aarch64__)
typedef uint64_t slm_fpstate;
static inline slm_fpstate slm_fpstate_enter(void) {
  slm_fpstate before;
  __asm__ volatile("mrs %0, fpcr" : "=r"(before));
  __asm__ volatile("msr fpcr, %0" : : "r"((slm_fpstate)0) : "memory");
  return before;
}
static inline void slm_fpstate_leave(slm_fpstate before) { __asm__ volatile("msr fpcr, %0" : : "r"(before) : "memory"); }
#else
typedef int slm_fpstate;
static inline slm_fpstate slm_fpstate_enter(void) { return 0; }
static inline void slm_fpstate_leave(slm_fpstate before) { (void)before; }
#endif
#endif
