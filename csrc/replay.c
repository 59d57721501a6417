/* Runs a dump of a program and its steps without Python, and compares the logits to the bit: what qemu, the sanitizers
   and the fuzzer run (tests/replay.py builds it, tinyslm/backends/dump.py writes dumps). No part of the extension.

     replay DUMP [--isa NAME] [--threads N] [--repeat N] [--cancel]
     replay --isas          lists the instruction sets here

   --cancel: each step is first run while another thread cancels it, then once more, which must leave no trace of the
   first. Exit: 0 the same bits, 1 other bits, 2 a dump that does not hold together, or no such engine here.
   Compiled with SLM_REPLAY, so that all of the engine's memory comes from the slm_alloc below. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "engine.h"

enum { LARGEST = 1 << 24, MEMORY = 1 << 30 }; /* of one dimension; bytes for workspace, scratch and pages together */

/* Each block by itself, to its last byte, so that AddressSanitizer sees what reaches past it; of bytes that make NaN in
   every float type, so that what is read before it was written shows. */
void *slm_alloc(int64_t bytes) {
  void *p = NULL;
  if (bytes <= 0 || posix_memalign(&p, 64, (size_t)bytes)) return NULL;
  return memset(p, 0xff, (size_t)bytes);
}
void slm_free(void *memory, int64_t bytes) { (void)bytes, free(memory); }

static _Noreturn void refuse(const char *what) {
  fprintf(stderr, "replay: %s\n", what);
  exit(2);
}

/* ---- the file ---- */

typedef struct {
  int32_t n_tokens, n_outputs, n_sequences, n_pages;
} step_head;

/* A step: its batch, and what must come of it. Arrays are blocks of their own, of exactly their size. */
typedef struct {
  slm_batch batch;
  uint8_t *bad;
  float *logits;
} step;

typedef struct {
  uint8_t *bytes;
  size_t size, at;
} reader;

typedef struct {
  slm_program program;
  int64_t arena_bytes;
  int32_t n_steps, n_pages;
  step *steps;
  uint8_t **pages;
} dump;

/* A block of its own, of a byte at least. */
static void *room(int64_t bytes) {
  void *block = slm_alloc(bytes ? bytes : 1);
  if (!block) refuse("no memory");
  return block;
}

/* n items, in a block of their own; in the file they are padded to 8 bytes. */
static void *take(reader *r, int64_t n, int64_t item) {
  if (n < 0 || n > (int64_t)(r->size - r->at) / item) refuse("the dump ends too early");
  uint8_t *block = room(n * item);
  memcpy(block, r->bytes + r->at, (size_t)(n * item));
  r->at += (size_t)((n * item + 7) / 8 * 8);
  if (r->at > r->size) refuse("the dump ends too early");
  return block;
}

static int64_t number(reader *r, int64_t least, int64_t most) {
  int64_t *p = take(r, 1, 8), n = *p;
  slm_free(p, 8);
  if (n < least || n > most) refuse("a number of the dump is out of range");
  return n;
}

static reader load(const char *path) {
  reader r = {NULL, 0, 0};
  FILE *f = fopen(path, "rb");
  long size = -1;
  if (f && !fseek(f, 0, SEEK_END)) size = ftell(f), rewind(f);
  if (size < 8 || !(r.bytes = malloc((size_t)size)) || fread(r.bytes, 1, (size_t)size, f) != (size_t)size)
    refuse("the dump cannot be read");
  fclose(f);
  r.size = (size_t)size;
  if (memcmp(r.bytes, "SLMDUMP1", 8)) refuse("not a dump");
  r.at = 8;
  return r;
}

static step read_step(reader *r, const dump *d) {
  step s = {{0}, NULL, NULL};
  slm_batch *b = &s.batch;
  step_head *head = take(r, 1, sizeof *head);
  b->n_tokens = head->n_tokens, b->n_outputs = head->n_outputs, b->n_sequences = head->n_sequences;
  if (b->n_sequences < 1 || b->n_sequences == INT32_MAX) refuse("a step has no sequence");
  b->ids = take(r, b->n_tokens, 4), b->positions = take(r, b->n_tokens, 4), b->sequence = take(r, b->n_tokens, 4);
  b->outputs = take(r, b->n_outputs, 4), b->first_page = take(r, b->n_sequences + 1, 4);
  int32_t *pages = take(r, head->n_pages, 4);
  uint8_t **table = room(head->n_pages * (int64_t)sizeof *table);
  for (int32_t i = 0; i < head->n_pages; i++) {
    if (pages[i] < 0 || pages[i] >= d->n_pages) refuse("a step names a page that is not there");
    table[i] = d->pages[pages[i]];
  }
  for (int32_t i = 0; i <= b->n_sequences; i++)
    if (b->first_page[i] < (i ? b->first_page[i - 1] : 0) || b->first_page[i] > head->n_pages) refuse("a page table is broken");
  b->pages = table;
  s.bad = take(r, b->n_tokens, 1), s.logits = take(r, (int64_t)b->n_outputs * d->program.vocab, 4);
  b->bad = room(b->n_tokens), b->logits = room((int64_t)b->n_outputs * d->program.vocab * 4);
  b->maxima = room(b->n_outputs * slm_sixteens(d->program.vocab) * 4);
  slm_free(pages, 0), slm_free(head, 0);
  return s;
}

/* ---- whether a program stays within its memory ---- */

static int range(int64_t at, int64_t bytes, int64_t size) { return at >= 0 && at % 64 == 0 && bytes >= 0 && bytes <= size && at <= size - bytes; }

/* `rows` rows of `width` floats, `ld` apart, in the workspace. */
static int values(const slm_program *p, int32_t rows, int64_t at, int32_t ld, int64_t width) {
  return width > 0 && ld >= width && range(at, ((int64_t)(rows - 1) * ld + width) * 4, p->workspace);
}
static int value(const slm_program *p, int64_t at, int32_t ld, int64_t width) { return values(p, p->rows, at, ld, width); }
/* What a folded PREPARE rounds is in the workspace in narrow steps alone. */
static int foldable(const slm_program *p, int64_t at, int32_t ld, int64_t width) {
  return values(p, p->rows < SLM_NARROW ? p->rows : SLM_NARROW, at, ld, width);
}
static int floats(const dump *d, int64_t at, int64_t n) { return range(at, 4 * n, d->arena_bytes); }
static int optional(const dump *d, int64_t at, int64_t n) { return at == -1 || floats(d, at, n); }
static int panels(const dump *d, int64_t at, int32_t type, int64_t n, int32_t k) {
  return slm_panel_bytes(type, k) && range(at, (n + 15) / 16 * slm_panel_bytes(type, k), d->arena_bytes);
}
/* The weights of n columns, of both matrices. */
static int weights(const dump *d, const slm_op *op, int64_t n) {
  const int gated = op->epilogue == SLM_GATED;
  if (!slm_panel_bytes(op->type, op->k) || slm_act_block(op->type) != op->act_block) return 0;
  if (gated && (!slm_panel_bytes(op->type2, op->k) || slm_act_block(op->type2) != op->act_block)) return 0;
  return range(op->w, (n + 15) / 16 * slm_panel_step(op), d->arena_bytes);
}
static int slot(const slm_program *p, const slm_op *op) {
  const int known = op->act_block == 0 || (op->act_block >= 16 && op->act_block <= 256 && !(op->act_block & (op->act_block - 1)));
  if (!known || op->k < 1 || (op->act_block && op->k % op->act_block)) return 0;
  const int64_t row = slm_act_row_bytes(op->act_block, op->k);
  if (op->used) return range(op->act_wide, row * slm_group_rows(p->rows, op->used, op->experts), p->workspace);
  return range(op->act_narrow, row * SLM_NARROW, p->scratch) && range(op->act_wide, row * ((p->rows + 15) / 16 * 16), p->workspace);
}
static int turns(const slm_program *p, const slm_op *op) {
  return op->rope >= 0 && op->rope < p->n_ropes && 2 * (int64_t)p->ropes[op->rope].half <= op->dk;
}
static int page_part(const slm_program *p, const slm_op *op) {
  return op->kv_heads > 0 && op->dk > 0 && op->dv > 0 && op->window >= 0 && (op->rope == -1 || turns(p, op)) &&
         slm_kv_bytes(op->kv_type, op->dk, 1) &&
         range(op->kv, op->kv_heads * (slm_kv_bytes(op->kv_type, op->dk, op->kv_type == SLM_Q8_0) + slm_kv_bytes(op->kv_type, op->dv, 1)), p->page_bytes);
}

static int matmul_fits(const dump *d, const slm_op *op) {
  const slm_program *p = &d->program;
  const int folded = op + 1 < p->ops + p->n_ops && op[1].kind == SLM_PREPARE && op[1].folded;
  const int out = op->out == -1 ? op->output && op->n == p->vocab : (folded ? foldable : value)(p, op->out, op->ldout, op->n);
  return out && slot(p, op) && weights(d, op, op->n) &&
         optional(d, op->bias, op->n) && optional(d, op->bias2, op->n) && op->epilogue >= SLM_PLAIN && op->epilogue <= SLM_GATED &&
         (op->epilogue != SLM_RESIDUAL || value(p, op->y, op->ldy, op->n));
}

/* The norm that an op of so many heads makes, if it makes one. */
static int norm_fits(const dump *d, const slm_op *op, int64_t heads) {
  const int64_t width = (heads - 1) * op->part + op->k;
  return optional(d, op->norm, width) && optional(d, op->norm_bias, width);
}

static int prepare_fits(const dump *d, const slm_op *op) {
  const slm_program *p = &d->program;
  const int64_t width = op->used ? (int64_t)(op->used - 1) * op->part + op->k : op->k;
  if (!op->folded) return value(p, op->x, op->ldx, width) && norm_fits(d, op, 1) && slot(p, op);
  const slm_op *made = op - 1;
  return op > p->ops && made->kind == SLM_MATMUL && made->out == op->x && made->n == op->k && made->output == op->output &&
         op->act_block && !op->used && op->norm == -1 && foldable(p, op->x, op->ldx, width) && slot(p, op);
}

static int experts_fit(const dump *d, const slm_op *op) {
  const slm_program *p = &d->program;
  const int64_t rows = (op->n + 15LL) / 16 * 16 * op->experts;
  return op->used && op->experts && value(p, op->out, op->ldout, (int64_t)op->used * op->n) && slot(p, op) &&
         weights(d, op, rows) && op->bias == -1 && op->bias2 == -1 &&
         (op->epilogue == SLM_PLAIN || op->epilogue == SLM_GATED);
}

static int op_fits(const dump *d, const slm_op *op) {
  const slm_program *p = &d->program;
  const int32_t sizes[] = {op->n, op->k, op->ldx, op->ldy, op->ldout, op->heads, op->kv_heads, op->dk, op->dv,
                           op->offset, op->used, op->experts, op->part};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    if (sizes[i] < 0 || sizes[i] > LARGEST) return 0;
  if (op->output < 0 || op->output > 1 || (op->gather && !op->output)) return 0;
  if (op->act < SLM_AS_IS || op->act > SLM_RELU || (int64_t)op->used * p->rows > LARGEST) return 0;
  const int64_t row_bytes = slm_row_bytes(op->type, op->n);
  switch (op->kind) {
    case SLM_EMBED: return row_bytes && range(op->w, p->vocab * row_bytes, d->arena_bytes) && value(p, op->out, op->ldout, op->n);
    case SLM_LOOKUP: return panels(d, op->w, op->type, p->vocab, op->n) && value(p, op->out, op->ldout, op->n);
    case SLM_POSITION: return row_bytes && range(op->w, op->k * row_bytes, d->arena_bytes) && value(p, op->out, op->ldout, op->n);
    case SLM_NORM: {
      const int64_t width = (int64_t)op->heads * op->k;
      return op->norm >= 0 && norm_fits(d, op, op->heads) && value(p, op->x, op->ldx, width) && value(p, op->out, op->ldout, width) &&
             (op->y == -1 || value(p, op->y, op->ldy, width));
    }
    case SLM_PREPARE: return prepare_fits(d, op);
    case SLM_MATMUL: return matmul_fits(d, op);
    case SLM_ROPE: {
      const int64_t width = (int64_t)op->heads * op->dk;
      return turns(p, op) && value(p, op->x, op->ldx, width) && value(p, op->out, op->ldout, width);
    }
    case SLM_STORE:
      return !op->output && page_part(p, op) && value(p, op->x, op->ldx, (int64_t)op->kv_heads * op->dk) &&
             value(p, op->y, op->ldy, (int64_t)op->kv_heads * op->dv);
    case SLM_ATTEND:
      return page_part(p, op) && op->heads % op->kv_heads == 0 && value(p, op->x, op->ldx, (int64_t)op->heads * op->dk) &&
             value(p, op->out, op->ldout, (int64_t)op->heads * op->dv);
    case SLM_GLU:
    case SLM_ADD:
      return value(p, op->x, op->ldx, op->n) && value(p, op->y, op->ldy, op->n) && value(p, op->out, op->ldout, op->n);
    case SLM_ROUTE:
      return op->used >= 1 && op->used <= op->k && value(p, op->x, op->ldx, op->k) && value(p, op->out, op->ldout, 2LL * op->used);
    case SLM_GROUP: return op->used && op->experts && value(p, op->x, op->ldx, 2LL * op->used);
    case SLM_EXPERTS: return experts_fit(d, op);
    case SLM_MIX:
      return value(p, op->x, op->ldx, (int64_t)op->used * op->n) && value(p, op->y, op->ldy, op->used) && value(p, op->out, op->ldout, op->n);
    case SLM_MAP:
      return value(p, op->x, op->ldx, op->n) && (op->out == -1 ? op->output && op->n == p->vocab : value(p, op->out, op->ldout, op->n));
    case SLM_GATHER: return value(p, op->x, op->ldx, op->n) && value(p, op->out, op->ldout, op->n);
  }
  return 0;
}

/* ---- a dump as a whole ---- */

static dump read_dump(reader *r, int32_t threads) {
  dump d = {0};
  slm_program *p = &d.program;
  if (number(r, 0, INT32_MAX) != (int64_t)sizeof(slm_op)) refuse("the dump is of another version");
  p->n_ops = (int32_t)number(r, 1, LARGEST), p->n_ropes = (int32_t)number(r, 0, LARGEST);
  p->n_frequencies = (int32_t)number(r, 0, LARGEST), p->vocab = (int32_t)number(r, 1, LARGEST);
  p->rows = (int32_t)number(r, 1, LARGEST);
  p->workspace = number(r, 0, MEMORY), p->scratch = number(r, 0, MEMORY), p->page_bytes = number(r, 0, MEMORY);
  d.arena_bytes = number(r, 0, INT64_MAX), d.n_pages = (int32_t)number(r, 0, LARGEST), d.n_steps = (int32_t)number(r, 0, LARGEST);
  p->ops = take(r, p->n_ops, sizeof *p->ops), p->ropes = take(r, p->n_ropes, sizeof *p->ropes);
  p->frequencies = take(r, p->n_frequencies, 8), p->arena = take(r, d.arena_bytes, 1);
  int64_t memory = p->workspace + threads * p->scratch + d.n_pages * p->page_bytes + p->rows * 64LL;
  for (int32_t i = 0; i < p->n_ropes; i++) {
    const slm_rope *rope = p->ropes + i;
    if (rope->half < 0 || rope->first < 0 || rope->first > p->n_frequencies - rope->half) refuse("a rotation is out of range");
    memory += 8LL * p->rows * rope->half;
    if (memory > MEMORY) break;
  }
  if (memory > MEMORY) refuse("the program wants too much memory");
  for (int32_t i = 0; i < p->n_frequencies; i++)
    if (!(p->frequencies[i] >= -1024 && p->frequencies[i] <= 1024)) refuse("a frequency is out of range");
  for (int32_t i = 0; i < p->n_ops; i++)
    if (!op_fits(&d, p->ops + i)) fprintf(stderr, "replay: op %d of kind %d:\n", i, p->ops[i].kind), refuse("outside of its memory");
  d.pages = calloc((size_t)d.n_pages + 1, sizeof *d.pages), d.steps = calloc((size_t)d.n_steps + 1, sizeof *d.steps);
  if (!d.pages || !d.steps) refuse("no memory");
  for (int32_t i = 0; i < d.n_pages && p->page_bytes; i++)
    if (!(d.pages[i] = slm_alloc(p->page_bytes))) refuse("no memory");
  for (int32_t i = 0; i < d.n_steps; i++) d.steps[i] = read_step(r, &d);
  if (r->at != r->size) refuse("the dump goes on after its end");
  free(r->bytes);
  return d;
}

static void free_dump(dump *d) {
  for (int32_t i = 0; i < d->n_steps; i++) {
    step *s = d->steps + i;
    const void *blocks[] = {s->batch.ids, s->batch.positions, s->batch.sequence, s->batch.outputs, s->batch.first_page,
                            s->batch.pages, s->batch.logits, s->batch.maxima, s->batch.bad, s->bad, s->logits};
    for (size_t j = 0; j < sizeof blocks / sizeof *blocks; j++) slm_free((void *)blocks[j], 0);
  }
  for (int32_t i = 0; i < d->n_pages; i++) slm_free(d->pages[i], 0);
  slm_free((void *)d->program.ops, 0), slm_free((void *)d->program.ropes, 0);
  slm_free((void *)d->program.frequencies, 0), slm_free((void *)d->program.arena, 0);
  free(d->pages), free(d->steps);
}

/* ---- running ---- */

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct {
  int32_t word;
  double delay;
} cancellation;

static void *cancel_later(void *argument) {
  cancellation *c = argument;
  for (const double start = now(); now() - start < c->delay;) {}
  __atomic_store_n(&c->word, 1, __ATOMIC_RELAXED);
  return NULL;
}

/* A step that another thread cancels after a share of `seconds`; whether it was in time. */
static int run_cancelled(slm_engine *engine, slm_batch batch, double seconds) {
  static uint32_t random = 1;
  cancellation c = {0, seconds * (double)((random = random * 1664525 + 1013904223) >> 16) / 65536};
  pthread_t thread;
  batch.cancel = &c.word;
  if (pthread_create(&thread, NULL, cancel_later, &c)) refuse("no thread");
  const int32_t error = slm_step(engine, &batch);
  pthread_join(thread, NULL);
  if (error && error != SLM_E_CANCELLED) refuse("the engine refused a step");
  return error == SLM_E_CANCELLED;
}

/* 0, or 1 at the first difference, which is told. A row that is marked bad holds nothing. */
static int compare(const step *s, int32_t index, int32_t vocab) {
  const slm_batch *b = &s->batch;
  for (int32_t i = 0; i < b->n_tokens; i++)
    if (b->bad[i] != s->bad[i])
      return printf("step %d token %d: bad is %d, expected %d\n", index, i, b->bad[i], s->bad[i]), 1;
  for (int32_t i = 0; i < b->n_outputs; i++)
    for (int64_t j = (int64_t)i * vocab; !b->bad[b->outputs[i]] && j < (int64_t)(i + 1) * vocab; j++)
      if (memcmp(b->logits + j, s->logits + j, 4))
        return printf("step %d output %d logit %d: %a, expected %a\n", index, i, (int)(j % vocab), (double)b->logits[j],
                      (double)s->logits[j]), 1;
  for (int32_t i = 0; i < b->n_outputs; i++)
    for (int64_t j = 0; !b->bad[b->outputs[i]] && j < slm_sixteens(vocab); j++) {
      const float *x = b->logits + (int64_t)i * vocab + 16 * j, found = b->maxima[i * slm_sixteens(vocab) + j];
      float most = *x;
      for (int k = 1; k < 16 && 16 * j + k < vocab; k++) most = x[k] > most ? x[k] : most;
      if (found != most) return printf("step %d output %d maximum %d: %a, expected %a\n", index, i, (int)j, (double)found, (double)most), 1;
    }
  return 0;
}

/* FNV-1a over the logits that count. */
static uint64_t hash_step(const step *s, int32_t vocab, uint64_t hash) {
  for (int32_t i = 0; i < s->batch.n_outputs; i++) {
    const uint8_t *bytes = (const uint8_t *)(s->batch.logits + (int64_t)i * vocab);
    for (int64_t j = 0; !s->batch.bad[s->batch.outputs[i]] && j < 4LL * vocab; j++) hash = (hash ^ bytes[j]) * 0x100000001b3;
  }
  return hash;
}

typedef struct {
  double seconds;
  int64_t tokens;
  int32_t cancelled, differs;
  uint64_t hash;
} outcome;

static void run_steps(dump *d, slm_engine *engine, int cancel, outcome *o) {
  o->hash = 0xcbf29ce484222325;
  for (int32_t i = 0; i < d->n_pages; i++)
    if (d->pages[i]) memset(d->pages[i], 0xff, (size_t)d->program.page_bytes);
  for (int32_t i = 0; i < d->n_steps; i++) {
    step *s = d->steps + i;
    if (cancel) o->cancelled += run_cancelled(engine, s->batch, o->tokens ? 2 * o->seconds / (double)o->tokens * s->batch.n_tokens : 1e-4);
    memset(s->batch.logits, 0xff, (size_t)s->batch.n_outputs * (size_t)d->program.vocab * 4);
    memset(s->batch.maxima, 0xff, (size_t)s->batch.n_outputs * (size_t)slm_sixteens(d->program.vocab) * 4);
    memset(s->batch.bad, 0xff, (size_t)s->batch.n_tokens);
    const double start = now();
    const int32_t error = slm_step(engine, &s->batch);
    o->seconds += now() - start, o->tokens += s->batch.n_tokens;
    if (error) fprintf(stderr, "replay: step %d: error %d\n", i, error), exit(2);
    if (!o->differs) o->differs = compare(s, i, d->program.vocab);
    o->hash = hash_step(s, d->program.vocab, o->hash);
  }
}

static int count(const char *text) {
  const int n = text ? atoi(text) : 0;
  if (n < 1 || n > 1024) refuse("a count goes from 1 to 1024");
  return n;
}

static int list_isas(void) {
  for (int32_t i = 0; slm_isa_name(i); i++)
    if (slm_isa_here(i)) puts(slm_isa_name(i));
  return 0;
}

int main(int argc, char **argv) {
  const char *path = NULL, *isa = NULL;
  int threads = 1, repeat = 1, cancel = 0;
  for (int i = 1; i < argc; i++) {
    if (!strcmp(argv[i], "--isa") && i + 1 < argc) isa = argv[++i];
    else if (!strcmp(argv[i], "--threads")) threads = count(argv[++i]);
    else if (!strcmp(argv[i], "--repeat")) repeat = count(argv[++i]);
    else if (!strcmp(argv[i], "--cancel")) cancel = 1;
    else if (!strcmp(argv[i], "--isas")) return list_isas();
    else if (!path) path = argv[i];
    else refuse("replay DUMP [--isa NAME] [--threads N] [--repeat N] [--cancel]");
  }
  if (!path) refuse("replay DUMP [--isa NAME] [--threads N] [--repeat N] [--cancel]");
  reader r = load(path);
  dump d = read_dump(&r, threads);
  int32_t error;
  slm_engine *engine = slm_engine_new(&d.program, isa, threads, &error);
  if (!engine) refuse(error == SLM_E_ISA ? "no such instruction set here" : "the engine cannot start");
  outcome o = {0};
  for (int i = 0; i < repeat; i++) run_steps(&d, engine, cancel, &o);
  printf("%s threads %d steps %d cancelled %d hash %016llx %.1f tokens/s %s\n", slm_engine_isa(engine), threads, d.n_steps,
         o.cancelled, (unsigned long long)o.hash, (double)o.tokens / o.seconds, o.differs ? "DIFFERS" : "same");
  slm_engine_free(engine);
  free_dump(&d);
  return o.differs;
}
