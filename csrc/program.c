/* Engines: made, stepped over a batch, freed. */
#if defined(__linux__)
#define _GNU_SOURCE
#endif
#include <stdlib.h>
#include <string.h>
#include "program.h"
#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

/* ---- the step ---- */

/* The sequences of the step, and their wanted rows. */
static void make_units(slm_engine *e) {
  const slm_batch *b = e->batch;
  slm_unit *all = e->units[0], *wanted = e->units[1];
  int32_t n = 0, m = 0, run = 0;
  for (int32_t r = 0; r < b->n_tokens; r++)
    if (n && all[n - 1].sequence == b->sequence[r]) all[n - 1].count++;
    else all[n] = (slm_unit){r, 1, b->sequence[r], n, b->positions[r]}, n++;
  for (int32_t r = 0; r < b->n_outputs; r++) {
    while (all[run].first + all[run].count <= b->outputs[r]) run++;
    if (m && wanted[m - 1].run == run) wanted[m - 1].count++;
    else wanted[m++] = (slm_unit){r, 1, all[run].sequence, run, all[run].fresh};
  }
  e->n_units[0] = n, e->n_units[1] = m;
}

/* Room for what attention by segments leaves, where a sequence of a narrow step has more than one. It grows by doubling. */
static int32_t make_parts(slm_engine *e) {
  const slm_batch *b = e->batch;
  e->segments = 1;
  if (b->n_tokens > SLM_NARROW) return SLM_OK;
  for (int32_t i = 0; i < b->n_tokens; i++)
    if (b->positions[i] / SLM_SEGMENT >= e->segments) e->segments = b->positions[i] / SLM_SEGMENT + 1;
  memset(e->ended, 0, (size_t)e->n_ended * sizeof *e->ended);
  int64_t floats = 0;
  for (int32_t i = 0; i < e->program.n_ops && e->segments > 1; i++) {
    const slm_op *op = e->program.ops + i;
    const int64_t these = op->kind == SLM_ATTEND ? op->heads * slm_part_floats(op) : 0;
    floats = these > floats ? these : floats;
  }
  const int64_t bytes = 4 * floats * b->n_tokens * e->segments;
  if (bytes <= e->parts_bytes) return SLM_OK;
  slm_free(e->parts, e->parts_bytes);
  e->parts_bytes = 2 * bytes;
  if ((e->parts = slm_alloc(e->parts_bytes))) return SLM_OK;
  e->parts_bytes = 0;
  return SLM_E_MEMORY;
}

/* SLM_OK if every number of the batch is in range. */
static int32_t check(const slm_engine *e, const slm_batch *b) {
  if (b->n_tokens < 1 || b->n_tokens > e->program.rows || b->n_sequences < 1) return SLM_E_ARGUMENT;
  if (b->n_outputs < 0 || b->n_outputs > b->n_tokens) return SLM_E_ARGUMENT;
  for (int32_t i = 0; i < b->n_tokens; i++) {
    const int32_t s = b->sequence[i], position = b->positions[i];
    if (b->ids[i] < 0 || b->ids[i] >= e->program.vocab || s < 0 || s >= b->n_sequences || position < 0) return SLM_E_ARGUMENT;
    if (position >= e->most_positions) return SLM_E_ARGUMENT;
    if (position / SLM_PAGE >= b->first_page[s + 1] - b->first_page[s]) return SLM_E_ARGUMENT;
    if (i && s == b->sequence[i - 1] && position != b->positions[i - 1] + 1) return SLM_E_ARGUMENT;
    if (i && s < b->sequence[i - 1]) return SLM_E_ARGUMENT;
  }
  for (int32_t i = 0; i < b->n_outputs; i++)
    if (b->outputs[i] < (i ? b->outputs[i - 1] + 1 : 0) || b->outputs[i] >= b->n_tokens) return SLM_E_ARGUMENT;
  return SLM_OK;
}

int32_t slm_step(slm_engine *e, const slm_batch *batch) {
  int32_t error = check(e, batch);
  if (error) return error;
  e->batch = batch, e->stopped = 0;
  make_units(e);
  error = make_parts(e);
  if (error) return error;
  memset(batch->bad, 0, (size_t)batch->n_tokens);
  e->active = slm_pool_fit(e->pool);
  const int32_t parts = batch->n_tokens >= OWN_ROWS * e->active ? e->active : 1;
  for (int32_t i = 0; i < parts * e->program.n_ops; i++) e->claims[i].next = 0;
  error = slm_pool_run(e->pool, e->active, slm_walk, e);
  return error ? error : e->stopped ? SLM_E_CANCELLED : SLM_OK;
}

/* ---- making and freeing ---- */

#if !defined(SLM_REPLAY) /* the replay driver brings memory of its own, filled with NaN */
void *slm_alloc(int64_t bytes) {
  if (bytes <= 0) return NULL;
#if defined(__unix__) || defined(__APPLE__)
  void *p = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
  if (p == MAP_FAILED) return NULL;
#if defined(MADV_HUGEPAGE)
  const char *wanted = getenv("TINYSLM_HUGE_PAGES");
  if (bytes >= 4 << 20 && !(wanted && !strcmp(wanted, "0"))) madvise(p, (size_t)bytes, MADV_HUGEPAGE);
#endif
  return p;
#else
  return calloc(1, (size_t)bytes);
#endif
}

void slm_free(void *memory, int64_t bytes) {
  if (!memory) return;
#if defined(__unix__) || defined(__APPLE__)
  munmap(memory, (size_t)bytes);
#else
  (void)bytes;
  free(memory);
#endif
}
#endif

int64_t slm_kv_bytes(int32_t type, int32_t n, int32_t fill) {
  const int64_t wide = fill ? (n + 15LL) / 16 * 16 : n;
  return type == SLM_F16 ? SLM_PAGE * wide * 2 : type == SLM_Q8_0 ? SLM_PAGE * wide / 8 * 9 : 0;
}

static int64_t up64(int64_t n) { return (n + 63) / 64 * 64; }

/* Bytes of kernel scratch that any op takes. */
static int64_t kernel_scratch(const slm_program *p) {
  int64_t most = 0;
  for (int32_t i = 0; i < p->n_ops; i++) {
    const slm_op *op = p->ops + i;
    int64_t bytes = op->kind == SLM_ATTEND || op->kind == SLM_STORE ? 4 * slm_attend_floats(op) : op->folded ? 4 * SLM_FOLD_FLOATS : 0;
    most = bytes > most ? bytes : most;
  }
  return most;
}

void slm_engine_free(slm_engine *e) {
  if (!e) return;
  slm_pool_free(e->pool);
  slm_free(e->memory, e->memory_bytes);
  free(e->turn_at), free(e->claims), free(e->units[0]), free(e->units[1]), free(e->ended), free(e->group_memory);
  slm_free(e->parts, e->parts_bytes);
  free(e);
}

/* False where a type has no kernel. */
static int types_known(const slm_program *p) {
  for (int32_t i = 0; i < p->n_ops; i++) {
    const slm_op *op = p->ops + i;
    const int dots = op->kind == SLM_MATMUL || op->kind == SLM_EXPERTS;
    const int reads = dots || op->kind == SLM_EMBED || op->kind == SLM_LOOKUP || op->kind == SLM_POSITION;
    const int32_t k = dots ? op->k : op->n;
    if (reads && !slm_panel_bytes(op->type, k)) return 0;
    if (dots && op->epilogue == SLM_GATED && !slm_panel_bytes(op->type2, k)) return 0;
  }
  return 1;
}

/* Room for the rows of any SLM_GROUP by their experts. */
static int allocate_groups(slm_engine *e) {
  const slm_program *p = &e->program;
  size_t experts = 0, sources = 0;
  e->most_positions = INT32_MAX;
  for (int32_t i = 0; i < p->n_ops; i++) {
    const slm_op *op = p->ops + i;
    if (op->kind == SLM_POSITION && op->k - op->offset < e->most_positions) e->most_positions = op->k - op->offset;
    if (op->kind != SLM_GROUP) continue;
    if ((size_t)op->experts > experts) experts = (size_t)op->experts;
    if ((size_t)op->used * (size_t)p->rows > sources) sources = (size_t)op->used * (size_t)p->rows;
  }
  int32_t *at = e->group_memory = calloc(3 * experts + 2 + 4 * sources, sizeof *at);
  slm_groups *g = &e->groups;
  if (!at) return 0;
  g->active = at + experts + 1, g->first_tile = g->active + experts, g->source = g->first_tile + experts + 1;
  g->tile_source = g->source + sources, g->tile_count = g->tile_source + sources, g->tile_row = g->tile_count + sources;
  return 1;
}

static int allocate(slm_engine *e) {
  const slm_program *p = &e->program;
  int64_t floats = 0;
  e->turn_at = calloc((size_t)p->n_ropes + 1, sizeof *e->turn_at);
  e->claims = aligned_alloc(64, sizeof *e->claims * ((size_t)p->n_ops * (size_t)e->threads + 1));
  for (int i = 0; i < 2; i++) e->units[i] = calloc((size_t)p->rows, sizeof **e->units);
  for (int32_t i = 0; i < p->n_ops; i++)
    if (p->ops[i].kind == SLM_ATTEND && SLM_NARROW * (int64_t)p->ops[i].kv_heads > e->n_ended) e->n_ended = SLM_NARROW * (int64_t)p->ops[i].kv_heads;
  e->ended = calloc((size_t)e->n_ended + 1, sizeof *e->ended);
  if (!e->turn_at || !e->claims || !e->units[0] || !e->units[1] || !e->ended || !allocate_groups(e)) return 0;
  for (int32_t i = 0; i < p->n_ropes; i++) {
    e->turn_at[i] = floats;
    floats += (int64_t)p->rows * 2 * p->ropes[i].half;
  }
  e->program.workspace = up64(p->workspace), e->program.scratch = up64(p->scratch);
  e->scratch = e->program.scratch + up64(kernel_scratch(p)) + 4096; /* apart, so that threads share no page */
  e->memory_bytes = e->program.workspace + e->threads * e->scratch + 4 * floats + 64;
  e->memory = slm_alloc(e->memory_bytes);
  e->turn = (float *)(e->memory + e->program.workspace + e->threads * e->scratch);
  return e->memory != NULL;
}

slm_engine *slm_engine_new(const slm_program *program, const char *isa, int32_t threads, int32_t *error) {
  slm_engine *e = threads < 1 || threads > 1024 ? NULL : calloc(1, sizeof *e);
  *error = threads < 1 || threads > 1024 ? SLM_E_ARGUMENT : SLM_E_MEMORY;
  if (!e) return NULL;
  e->program = *program, e->threads = threads, e->isa = slm_isa_find(isa);
  if (!e->isa) *error = SLM_E_ISA;
  else if (!types_known(program)) *error = SLM_E_TYPE;
  else if (allocate(e) && (e->pool = slm_pool_new(threads))) return *error = SLM_OK, e;
  slm_engine_free(e);
  return NULL;
}

const char *slm_engine_isa(const slm_engine *e) { return e->isa->name; }
const uint8_t *slm_engine_workspace(const slm_engine *e) { return e->memory; }
