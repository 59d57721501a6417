/* Measures the machine's limits on the threads and the instruction set that an engine would use. */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "engine.h"

enum { PASSES = 3, ROUNDS = 1 << 18 };

struct slm_probe {
  const slm_isa *isa;
  slm_pool *pool;
  uint8_t *memory;
  int64_t bytes; /* a thread's share is a multiple of 4 KB */
  int32_t threads, reading;
  int32_t sink; /* keeps results alive */
};

static double now(void) {
  struct timespec t;
  timespec_get(&t, TIME_UTC);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void job(void *state, int32_t thread) {
  slm_probe *p = state;
  const int64_t share = p->bytes / p->threads;
  const int32_t got = p->reading ? p->isa->probe_read(p->memory + thread * share, share) : p->isa->probe_dots(ROUNDS);
  __atomic_fetch_add(&p->sink, got, __ATOMIC_RELAXED);
}

/* The least seconds of some passes. */
static double best(slm_probe *p, int reading) {
  double least = 1e9;
  p->reading = reading;
  for (int i = 0; i < PASSES; i++) {
    const double start = now();
    slm_pool_run(p->pool, p->threads, job, p);
    const double seconds = now() - start;
    least = seconds < least ? seconds : least;
  }
  return least;
}

slm_probe *slm_probe_new(const char *isa, int32_t threads, int64_t bytes) {
  slm_probe *p = threads < 1 || threads > 1024 ? NULL : calloc(1, sizeof *p);
  if (!p) return NULL;
  p->isa = slm_isa_find(isa), p->threads = threads, p->bytes = bytes / threads / 4096 * 4096 * threads;
  p->memory = slm_alloc(p->bytes + 8192); /* what is prefetched past the end is there */
  if (p->memory) memset(p->memory, 1, (size_t)p->bytes);
  if (p->isa && p->memory && (p->pool = slm_pool_new(threads))) return p;
  slm_probe_free(p);
  return NULL;
}

void slm_probe_run(slm_probe *p, double *bytes_per_second, double *ops_per_second) {
  *bytes_per_second = (double)p->bytes / best(p, 1);
  *ops_per_second = 128.0 * p->isa->probe_sums * ROUNDS * p->threads / best(p, 0); /* a dot is 64 multiplications and additions */
}

void slm_probe_free(slm_probe *p) {
  if (!p) return;
  slm_pool_free(p->pool);
  slm_free(p->memory, p->bytes + 8192);
  free(p);
}
