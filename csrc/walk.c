/* The op walk: all threads go through the op list together, each taking its part of every op. */
#include <string.h>
#include "program.h"
#include "fpstate.h"

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

/* The PREPARE behind a matmul of a wide step that is done with it, or NULL. */
static const slm_op *folded_by(const walker *w, const slm_op *op) {
  const slm_program *p = &w->e->program;
  return !w->ctx.narrow && op + 1 < p->ops + p->n_ops && op[1].kind == SLM_PREPARE && op[1].folded ? op + 1 : NULL;
}

/* The same rows and panels, rounded as soon as they are made, while they are in the second-level cache. */
static void matmul_folded(const walker *w, const slm_op *op, int32_t row, int32_t stop, int32_t panel, int32_t panel_stop) {
  slm_ctx c = w->ctx;
  c.fold = (slm_fold){c.scratch, row, panel * 16, (panel_stop - panel) * 16};
  w->e->isa->matmul(&c, op, row, stop, panel, panel_stop);
  w->e->isa->prepare(&c, op + 1, row, stop, panel * 16, panel_stop * 16);
}

/* Claimed units of `step` panels from `first` on, with the rows row … stop of part `part`. */
static void matmul_claimed(const walker *w, const slm_op *op, int32_t part, int32_t row, int32_t stop, int32_t row_block,
                           int32_t first, int32_t panels, int32_t step) {
  const int folded = folded_by(w, op) != NULL;
  for (;;) {
    int64_t at = first + (int64_t)claim_of(w, op, part) * step;
    if (at >= panels) return;
    int32_t end = at + step < panels ? (int32_t)(at + step) : panels;
    for (int32_t r = row; r < stop; r += row_block) {
      if (stopped(w)) return;
      const int32_t r_stop = r + row_block < stop ? r + row_block : stop;
      if (folded) matmul_folded(w, op, r, r_stop, (int32_t)at, end);
      else w->e->isa->matmul(&w->ctx, op, r, r_stop, (int32_t)at, end);
    }
  }
}

static int32_t least(int64_t a, int64_t b) { return (int32_t)(a < b ? a : b); }
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
   pairs, as matmul takes them, or of whole blocks to be rounded, with no more rows than there is room for. What is rounded
   goes by longer groups, as a few blocks of a row are rounded no faster than many. */
static void matmul_wide(const walker *w, const slm_op *op) {
  const int32_t panels = (op->n + 15) / 16, threads = w->e->active, rows = slm_rows(&w->ctx, op);
  const int32_t tile = w->e->isa->tile;
  const slm_op *folded = folded_by(w, op);
  const int32_t together = op->epilogue == SLM_GATED ? 1 : 2;
  const int32_t pair = folded && folded->act_block > 16 * together ? folded->act_block / 16 : together;
  const int32_t parts = rows >= OWN_ROWS * threads ? threads : 1;
  const int32_t even = at_least_1(panels / (8 * threads / parts * pair)) * pair;
  const int32_t most = folded ? SLM_FOLD_FLOATS / (16 * 16) : panels;
  const int32_t cached = folded ? 512 << 10 : 256 << 10;
  const int32_t fit = least(at_least_1(cached / slm_panel_step(op) / pair) * pair, least(even, most));
  const int64_t near = w->e->isa->act_bytes / slm_act_row_bytes(op->act_block, op->k);
  const int32_t block = at_least_1(least(near, folded ? SLM_FOLD_FLOATS / (16 * fit) : near) / tile) * tile;
  for (int32_t i = 0; i < parts; i++) {
    const int32_t part = (w->thread + i) % parts, row = cut(rows, tile, part, parts), stop = cut(rows, tile, part + 1, parts);
    matmul_claimed(w, op, part, row, stop, block, 0, panels, fit);
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
  if (w->ctx.narrow) isa->prepare(&w->ctx, op, 0, rows, 0, op->k);
  else if (!op->folded) isa->prepare(&w->ctx, op, cut(rows, isa->tile, t, threads), cut(rows, isa->tile, t + 1, threads), 0, op->k);
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

void slm_walk(void *state, int32_t thread) {
  slm_engine *e = state;
  uint8_t *scratch = e->memory + e->program.workspace + thread * e->scratch;
  walker w = {e, {&e->program, e->batch, e->memory, scratch, (float *)(scratch + e->program.scratch), e->turn, e->turn_at,
                  &e->groups, e->parts, e->segments, e->batch->n_tokens <= SLM_NARROW, {0}}, thread};
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
