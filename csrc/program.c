/* The op walk: all threads go through the op list together, each taking its part of every op. */
#if defined(__linux__)
#define _GNU_SOURCE
#endif
#include <stdlib.h>
#include <string.h>
#include "engine.h"
#include "fpstate.h"
#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

enum { OWN_ROWS = 128 }; /* from so many for each thread on, each multiplies the rows that it prepared */

struct slm_engine {
  slm_program program;
  const slm_isa *isa;
  slm_pool *pool;
  int32_t threads, active, stopped; /* active: threads that take part in this step */
  int64_t scratch;          /* bytes per thread: act slots, then kernel scratch */
  uint8_t *memory;          /* workspace, then the threads' scratch, then turns */
  int64_t memory_bytes;
  float *turn;
  int64_t *turn_at;         /* per rope: offset of its table in floats */
  struct { _Alignas(64) int32_t next; } *claims; /* per part of the rows and op: ranges handed out */
  slm_groups groups;        /* rows by expert, of the SLM_GROUP run last */
  int32_t *group_memory;
  int32_t most_positions;   /* rows of the shortest table of learned positions, less its offset */
  slm_unit *units[2];       /* per row domain: the sequences of the step */
  int32_t n_units[2];
  int32_t *ended;           /* narrow attention: per row and KV head, segments that are done */
  int64_t n_ended;
  float *parts;             /* what those segments left */
  int64_t parts_bytes;
  int32_t segments;         /* the most that a sequence of the step has */
  const slm_batch *batch;
};

/* ---- parts of an op ---- */

typedef struct {
  slm_engine *e;
  slm_ctx ctx;
  int32_t thread;
} walker;

/* Part `i` of `parts` of n, in multiples of `step`. */
static int32_t cut(int32_t n, int32_t step, int32_t i, int32_t parts) {
  int64_t steps = (n + step - 1) / step, at = steps * i / parts * step;
  return at < n ? (int32_t)at : n;
}

static int stopped(const walker *w) {
  slm_engine *e = w->e;
  if (__atomic_load_n(&e->stopped, __ATOMIC_RELAXED)) return 1;
  if (!e->batch->cancel || !__atomic_load_n(e->batch->cancel, __ATOMIC_RELAXED)) return 0;
  __atomic_store_n(&e->stopped, 1, __ATOMIC_RELAXED);
  return 1;
}

static int32_t claim_of(const walker *w, const slm_op *op, int32_t part) {
  const slm_engine *e = w->e;
  return __atomic_fetch_add(&e->claims[part * e->program.n_ops + (op - e->program.ops)].next, 1, __ATOMIC_RELAXED);
}
static int32_t claim(const walker *w, const slm_op *op) { return claim_of(w, op, 0); }

/* Claimed units of `step` panels from `first` on, with the rows row … stop of part `part`. */
static void matmul_claimed(const walker *w, const slm_op *op, int32_t part, int32_t row, int32_t stop, int32_t row_block,
                           int32_t first, int32_t panels, int32_t step) {
  for (;;) {
    int64_t at = first + (int64_t)claim_of(w, op, part) * step;
    if (at >= panels) return;
    int32_t end = at + step < panels ? (int32_t)(at + step) : panels;
    for (int32_t r = row; r < stop; r += row_block) {
      if (stopped(w)) return;
      w->e->isa->matmul(&w->ctx, op, r, r + row_block < stop ? r + row_block : stop, (int32_t)at, end);
    }
  }
}

static int32_t at_least_1(int64_t n) { return n < 1 ? 1 : n > 1 << 20 ? 1 << 20 : (int32_t)n; }

/* Most of the panels in one contiguous range a thread, so that memory is read in long runs, the rest claimed in pieces of
   about 96 KB. */
static void matmul_narrow(const walker *w, const slm_op *op) {
  const int32_t panels = (op->n + 15) / 16, threads = w->e->active, rows = slm_rows(&w->ctx, op);
  const int32_t step = at_least_1((96 << 10) / slm_panel_step(op)), mine = (int32_t)((int64_t)panels * 85 / 100 / threads);
  for (int32_t p = w->thread * mine; p < (w->thread + 1) * mine; p += 4 * step) {
    int32_t end = p + 4 * step < (w->thread + 1) * mine ? p + 4 * step : (w->thread + 1) * mine;
    if (stopped(w)) return;
    w->e->isa->matmul(&w->ctx, op, 0, rows, p, end);
  }
  matmul_claimed(w, op, 0, 0, rows, rows, mine * threads, panels, step);
}

/* Each thread takes the rows that it prepared, as another core's come slowly, and then helps with what is left of others';
   with few rows for each it would be the weights that are read too often. Groups of panels, claimed, stay in the
   second-level cache together with as many tokens' activations; small enough that threads end together, and of whole
   pairs, as matmul takes them. */
static void matmul_wide(const walker *w, const slm_op *op) {
  const int32_t panels = (op->n + 15) / 16, threads = w->e->active, rows = slm_rows(&w->ctx, op);
  const int32_t tile = w->e->isa->tile, pair = op->epilogue == SLM_GATED ? 1 : 2;
  const int32_t parts = rows >= OWN_ROWS * threads ? threads : 1;
  const int32_t even = at_least_1(panels / (8 * threads / parts * pair)) * pair;
  const int32_t fit = at_least_1((256 << 10) / slm_panel_step(op) / pair) * pair;
  const int64_t block = at_least_1((384 << 10) / slm_act_row_bytes(op->act_block, op->k) / tile) * tile;
  for (int32_t i = 0; i < parts; i++) {
    const int32_t part = (w->thread + i) % parts, row = cut(rows, tile, part, parts), stop = cut(rows, tile, part + 1, parts);
    matmul_claimed(w, op, part, row, stop, (int32_t)block, 0, panels, fit < even ? fit : even);
  }
}

/* Rows of one sequence that attend together: as many as fill SLM_COLUMNS, but wide steps leave each thread some. */
static int32_t attend_rows(const walker *w, const slm_op *op) {
  const int32_t fit = at_least_1(SLM_COLUMNS / (op->heads / op->kv_heads));
  const int32_t even = at_least_1((int64_t)slm_rows(&w->ctx, op) * op->kv_heads / (4 * w->e->active));
  return w->ctx.narrow || fit < even ? fit : even;
}

/* Part `i` of a unit cut into `rows` rows. */
static slm_unit unit_part(const slm_unit *unit, int32_t rows, int32_t i) {
  slm_unit part = *unit;
  part.first += i * rows, part.count = unit->count - i * rows < rows ? unit->count - i * rows : rows;
  return part;
}
static int32_t unit_parts(const slm_unit *unit, int32_t rows) { return (unit->count + rows - 1) / rows; }

/* Claimed one by one, the longest first, so that the threads end together. */
static void attend_wide(const walker *w, const slm_op *op) {
  const slm_unit *units = w->e->units[op->output];
  const int32_t rows = attend_rows(w, op);
  int64_t before = 0; /* items of the units after u */
  for (int32_t u = w->e->n_units[op->output] - 1;;) {
    const int64_t at = claim(w, op);
    while (u >= 0 && at - before >= (int64_t)unit_parts(units + u, rows) * op->kv_heads)
      before += (int64_t)unit_parts(units + u--, rows) * op->kv_heads;
    if (u < 0 || stopped(w)) return;
    const slm_unit part = unit_part(units + u, rows, unit_parts(units + u, rows) - 1 - (int32_t)((at - before) / op->kv_heads));
    w->e->isa->attend(&w->ctx, op, &part, (int32_t)((at - before) % op->kv_heads), -1);
  }
}

typedef struct {
  int32_t first, last;
} segments;
static segments segments_of(const walker *w, const slm_op *op, const slm_unit *unit) {
  const int32_t *at = w->e->batch->positions, row = unit->first;
  return (segments){slm_seen_from(op, at[slm_token(&w->ctx, op, row)]) / SLM_SEGMENT,
                    at[slm_token(&w->ctx, op, row + unit->count - 1)] / SLM_SEGMENT};
}

/* One segment; whoever ends the last one of its unit and head adds them up. */
static void attend_segment(const walker *w, const slm_op *op, const slm_unit *unit, int32_t head, int32_t segment) {
  const segments s = segments_of(w, op, unit);
  int32_t *ended = &w->e->ended[(int64_t)unit->first * op->kv_heads + head];
  if (stopped(w)) return;
  w->e->isa->attend(&w->ctx, op, unit, head, s.first == s.last ? -1 : segment);
  if (s.first == s.last || __atomic_add_fetch(ended, 1, __ATOMIC_ACQ_REL) <= s.last - s.first) return;
  *ended = 0;
  w->e->isa->attend_merge(&w->ctx, op, unit, head, s.first, s.last);
}

/* The pairs of sequence and KV head that a thread stores in a narrow step, and so may attend to without waiting. */
static int32_t pair(const walker *w, const slm_op *op, int32_t thread) {
  return cut(w->e->n_units[0] * op->kv_heads, 1, thread, w->e->active);
}
static segments own_heads(const walker *w, const slm_op *op, int32_t run) { /* first … last - 1 */
  const int32_t low = pair(w, op, w->thread) - run * op->kv_heads, high = pair(w, op, w->thread + 1) - run * op->kv_heads;
  return (segments){low > 0 ? low : 0, high < op->kv_heads ? high : op->kv_heads};
}

/* The segments that the step writes to are attended to by the thread that wrote there; those before them are claimed. */
static void attend_narrow(const walker *w, const slm_op *op) {
  const slm_unit *units = w->e->units[op->output];
  const int32_t rows = attend_rows(w, op), n = w->e->n_units[op->output];
  for (int32_t u = 0; u < n; u++) {
    const segments own = own_heads(w, op, units[u].run);
    for (int32_t h = own.first; h < own.last; h++)
      for (int32_t i = 0; i < unit_parts(units + u, rows); i++) {
        const slm_unit part = unit_part(units + u, rows, i);
        const segments s = segments_of(w, op, &part);
        const int32_t fresh = part.fresh / SLM_SEGMENT;
        for (int32_t j = fresh > s.first ? fresh : s.first; j <= s.last; j++) attend_segment(w, op, &part, h, j);
      }
  }
  int64_t before = 0, at = claim(w, op);
  for (int32_t u = 0; u < n; u++)
    for (int32_t i = 0; i < unit_parts(units + u, rows); i++) {
      const slm_unit part = unit_part(units + u, rows, i);
      const int32_t first = segments_of(w, op, &part).first, here = (part.fresh / SLM_SEGMENT - first) * op->kv_heads;
      if (here <= 0) continue;
      for (; at < before + here; at = claim(w, op)) {
        const int32_t item = (int32_t)(at - before);
        attend_segment(w, op, &part, item % op->kv_heads, first + item / op->kv_heads);
      }
      before += here;
    }
}

static void run_store(const walker *w, const slm_op *op) {
  const int32_t t = w->thread, threads = w->e->active, rows = slm_rows(&w->ctx, op);
  if (!w->ctx.narrow) w->e->isa->store(&w->ctx, op, cut(rows, 1, t, threads), cut(rows, 1, t + 1, threads), 0, op->kv_heads);
  else
    for (int32_t u = 0; u < w->e->n_units[0]; u++) {
      const slm_unit *unit = w->e->units[0] + u;
      const segments own = own_heads(w, op, u);
      if (own.first < own.last) w->e->isa->store(&w->ctx, op, unit->first, unit->first + unit->count, own.first, own.last);
    }
}

static void embed(const slm_ctx *c, const slm_op *op, int32_t row, int32_t stop) {
  const uint8_t *w = c->program->arena + op->w;
  for (; row < stop; row++) {
    const int32_t token = slm_token(c, op, row);
    const int64_t id = op->kind == SLM_POSITION ? (int64_t)c->batch->positions[token] + op->offset : c->batch->ids[token];
    float *out = slm_out(c, op, row);
    if (op->kind == SLM_LOOKUP) slm_unpack(op->type, op->n, w, id, out);
    else slm_dequantise(op->type, op->n, w + id * slm_row_bytes(op->type, op->n), out);
    if (op->scale != 1)
      for (int32_t i = 0; i < op->n; i++) out[i] *= op->scale;
  }
}

/* ---- experts ---- */

/* Sorts the op's rows by the experts that they take. */
static void group(slm_engine *e, const slm_ctx *c, const slm_op *op) {
  slm_groups *g = &e->groups;
  const int32_t rows = slm_rows(c, op), n = rows * op->used;
  int32_t *start = e->group_memory; /* per expert, and one more: where its sources start */
  memset(start, 0, (size_t)(op->experts + 1) * sizeof *start);
  g->rows = rows, g->used = op->used, g->experts = op->experts, g->n_active = g->n_tiles = 0;
  for (int pass = 0; pass < 2; pass++) { /* count, then place: what was the start of the next becomes the own end */
    for (int32_t i = 0; i < n; i++) {
      const float number = slm_x(c, op, i / op->used)[op->used + i % op->used];
      const int32_t expert = number >= 0 && number < (float)op->experts ? (int32_t)number : 0;
      if (pass) g->source[start[expert]++] = i;
      else start[expert]++;
    }
    for (int32_t i = 0, sum = 0; !pass && i < op->experts; i++) {
      const int32_t count = start[i];
      start[i] = sum, sum += count;
    }
  }
  int32_t slot_row = 0;
  for (int32_t i = 0, at = 0; i < op->experts; i++) {
    if (at < start[i]) g->active[g->n_active] = i, g->first_tile[g->n_active++] = g->n_tiles;
    while (at < start[i]) {
      const int32_t left = start[i] - at, width = slm_tile(e->isa->tile, left), t = g->n_tiles++;
      g->tile_source[t] = at, g->tile_count[t] = left < width ? left : width, g->tile_row[t] = slot_row;
      at += g->tile_count[t], slot_row += width;
    }
  }
  g->first_tile[g->n_active] = g->n_tiles;
}

/* Whether the groups are of the op's rows: they are in any program of ours. */
static int grouped(const slm_ctx *c, const slm_op *op) {
  const slm_groups *g = c->groups;
  return g->rows == slm_rows(c, op) && g->used == op->used && g->experts == op->experts;
}

static void run_experts(const walker *w, const slm_op *op) {
  const int32_t panels = (op->n + 15) / 16;
  const int64_t bytes = slm_panel_step(op);
  const int32_t step = at_least_1((96 << 10) / bytes), parts = (panels + step - 1) / step;
  if (!grouped(&w->ctx, op)) return;
  for (;;) {
    const int64_t at = claim(w, op);
    if (at >= (int64_t)w->ctx.groups->n_active * parts || stopped(w)) return;
    const int32_t panel = (int32_t)(at % parts) * step;
    w->e->isa->experts(&w->ctx, op, (int32_t)(at / parts), panel, panel + step < panels ? panel + step : panels);
  }
}

static void run_prepare(const walker *w, const slm_op *op) {
  const slm_isa *isa = w->e->isa;
  const int32_t rows = slm_rows(&w->ctx, op), tiles = w->ctx.groups->n_tiles, t = w->thread, threads = w->e->active;
  if (op->used && grouped(&w->ctx, op)) isa->prepare_groups(&w->ctx, op, cut(tiles, 1, t, threads), cut(tiles, 1, t + 1, threads));
  if (op->used) return;
  if (w->ctx.narrow) isa->prepare(&w->ctx, op, 0, rows);
  else isa->prepare(&w->ctx, op, cut(rows, isa->tile, t, threads), cut(rows, isa->tile, t + 1, threads));
}

static void gather(const slm_ctx *c, const slm_op *op, int32_t row, int32_t stop) {
  for (; row < stop; row++) memcpy(slm_out(c, op, row), slm_x(c, op, row), (size_t)op->n * 4);
}

static void run_op(const walker *w, const slm_op *op) {
  const slm_isa *isa = w->e->isa;
  const int32_t rows = slm_rows(&w->ctx, op), t = w->thread, threads = w->e->active;
  const int32_t row = cut(rows, 1, t, threads), stop = cut(rows, 1, t + 1, threads);
  switch (op->kind) {
    case SLM_EMBED:
    case SLM_POSITION:
    case SLM_LOOKUP: embed(&w->ctx, op, row, stop); break;
    case SLM_NORM: isa->norm(&w->ctx, op, row, stop); break;
    case SLM_PREPARE: run_prepare(w, op); break;
    case SLM_MATMUL: (w->ctx.narrow ? matmul_narrow : matmul_wide)(w, op); break;
    case SLM_ROPE: isa->rope(&w->ctx, op, row, stop); break;
    case SLM_STORE: run_store(w, op); break;
    case SLM_ATTEND: (w->ctx.narrow ? attend_narrow : attend_wide)(w, op); break;
    case SLM_GLU: isa->glu(&w->ctx, op, row, stop); break;
    case SLM_ADD: isa->add(&w->ctx, op, row, stop); break;
    case SLM_MAP: isa->map(&w->ctx, op, row, stop); break;
    case SLM_ROUTE: isa->route(&w->ctx, op, row, stop); break;
    case SLM_GROUP: if (t == 0) group(w->e, &w->ctx, op); break;
    case SLM_EXPERTS: run_experts(w, op); break;
    case SLM_MIX: isa->mix(&w->ctx, op, row, stop); break;
    case SLM_GATHER: gather(&w->ctx, op, row, stop); break;
  }
}

/* ---- the step ---- */

static void turn_rows(const walker *w) {
  const slm_program *p = &w->e->program;
  const int32_t rows = w->e->batch->n_tokens, stop = cut(rows, 1, w->thread + 1, w->e->active);
  for (int32_t r = cut(rows, 1, w->thread, w->e->active); r < stop; r++)
    for (int32_t i = 0; i < p->n_ropes; i++) {
      const slm_rope *rope = p->ropes + i;
      slm_turns(w->e->batch->positions[r], p->frequencies + rope->first, rope->half, rope->magnitude,
                w->e->turn + w->e->turn_at[i] + (int64_t)r * 2 * rope->half);
    }
}

static void walk(void *state, int32_t thread) {
  slm_engine *e = state;
  uint8_t *scratch = e->memory + e->program.workspace + thread * e->scratch;
  walker w = {e, {&e->program, e->batch, e->memory, scratch, (float *)(scratch + e->program.scratch), e->turn, e->turn_at,
                  &e->groups, e->parts, e->segments, e->batch->n_tokens <= SLM_NARROW}, thread};
  const slm_fpstate before = slm_fpstate_enter();
  turn_rows(&w);
  slm_pool_barrier(e->pool);
  for (int32_t i = 0; i < e->program.n_ops; i++) {
    const slm_op *op = e->program.ops + i;
    if (op->barrier & (w.ctx.narrow ? 1 : 2)) slm_pool_barrier(e->pool);
    if (!stopped(&w)) run_op(&w, op);
  }
  slm_fpstate_leave(before);
}

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
  error = slm_pool_run(e->pool, e->active, walk, e);
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
    int64_t bytes = op->kind == SLM_ATTEND || op->kind == SLM_STORE ? 4 * slm_attend_floats(op) : 0;
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
