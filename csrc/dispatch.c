/* The instruction sets of this build, best first. */
#include <string.h>
#include "engine.h"

#if defined(__x86_64__)
extern const slm_isa slm_isa_amx, slm_isa_avx512vnni, slm_isa_avxvnni, slm_isa_avx2;
#elif defined(__aarch64__)
extern const slm_isa slm_isa_neon_dot, slm_isa_neon;
#endif
extern const slm_isa slm_isa_scalar;

static const slm_isa *const table[] = {
#if SLM_WITH_AMX
    &slm_isa_amx,
#endif
#if defined(__x86_64__)
    &slm_isa_avx512vnni, &slm_isa_avxvnni, &slm_isa_avx2,
#elif defined(__aarch64__)
    &slm_isa_neon_dot, &slm_isa_neon,
#endif
    &slm_isa_scalar,
};
enum { COUNT = sizeof table / sizeof *table };

const char *slm_isa_name(int32_t i) { return i >= 0 && i < COUNT ? table[i]->name : NULL; }
int32_t slm_isa_here(int32_t i) { return i >= 0 && i < COUNT && table[i]->here(); }

const slm_isa *slm_isa_find(const char *name) {
  for (int i = 0; i < COUNT; i++)
    if (table[i]->here() && (!name || strcmp(name, table[i]->name) == 0)) return table[i];
  return NULL;
}
