/* What the C files share: the state of a running step, and what an instruction set provides. */
#ifndef SLM_ENGINE_H
#define SLM_ENGINE_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>
#include "api.h"
#include "formats/panel.h"

_Static_assert(FLT_EVAL_METHOD == 0, "float arithmetic must round to float at every step");

enum { SLM_PAGE = 64, SLM_SEGMENT = 512 }; /* positions in a KV page; in an attention segment */
enum { SLM_COLUMNS = 128 };                /* query heads times tokens that attend together, about */
enum { SLM_FOLD_FLOATS = 64 << 10 };       /* of a matmul's result that a thread keeps until it is rounded */
enum { SLM_COLUMNS_FLOATS = 96 };          /* of the state of a tile of columns, but for its arrays */

/* How many maxima stand for n logits. */
static inline int64_t slm_sixteens(int64_t n) { return (n + 15) / 16; }

/* Tokens of one sequence: rows first … first + count - 1. It is the run-th sequence of the step, and the step's first
   token of it stands at position `fresh`. */
typedef struct {
  int32_t first, count, sequence, run, fresh;
} slm_unit;

/* Rows sorted by the experts that they take: a source is row · used + which of its experts. A tile is sources of one
   expert that meet its weights together, in consecutive rows of an act slot: as many as slm_tile says. */
typedef struct {
  int32_t rows, used, experts; /* 0: not made yet */
  int32_t n_active, n_tiles;
  int32_t *active;             /* (experts) those that any row takes, ascending */
  int32_t *first_tile;         /* (experts + 1) of each active one */
  int32_t *tile_source, *tile_count, *tile_row; /* (rows · used) its sources, how many, and its first row of a slot */
  int32_t *source;             /* (rows · used) */
} slm_groups;
/* The most rows of an act slot that holds `rows` rows by experts: of each expert's last tile, a power of two up to 16 and
   the least that fits, less than half is empty. */
static inline int64_t slm_group_rows(int64_t rows, int32_t used, int32_t experts) {
  const int64_t all = rows * used, few = 2 * all, many = all + 7 * (int64_t)experts;
  return few < many ? few : many;
}

/* Some columns of some rows of a matmul's result that stand in a thread's scratch, from where they are rounded. */
typedef struct {
  float *at;
  int32_t row, column, ld; /* the first ones; floats from row to row */
} slm_fold;

/* A step as one thread sees it. */
typedef struct {
  const slm_program *program;
  const slm_batch *batch;
  uint8_t *workspace;
  uint8_t *act;          /* this thread's act slots, for narrow steps */
  float *scratch;        /* this thread's, for kernels */
  const float *turn;     /* cos and sin of each token and rope: (ropes, rows, 2, half) by slm_turn */
  const int64_t *turn_at;
  const slm_groups *groups;
  float *parts;          /* attention by segments in narrow steps: (rows, heads, segments, slm_part_floats) */
  int32_t segments;
  int32_t narrow;
  slm_fold fold;         /* what this thread works on, of a matmul whose result is folded; at NULL: of none */
} slm_ctx;

/* Rows of the op, and the token that a row of the op, or of its x, stands for. */
static inline int32_t slm_rows(const slm_ctx *c, const slm_op *op) {
  return op->output ? c->batch->n_outputs : c->batch->n_tokens;
}
static inline int32_t slm_token(const slm_ctx *c, const slm_op *op, int32_t row) {
  return op->output ? c->batch->outputs[row] : row;
}
static inline const float *slm_x(const slm_ctx *c, const slm_op *op, int32_t row) {
  return (const float *)(c->workspace + op->x) + (int64_t)(op->gather ? c->batch->outputs[row] : row) * op->ldx;
}
static inline const float *slm_y(const slm_ctx *c, const slm_op *op, int32_t row) {
  return (const float *)(c->workspace + op->y) + (int64_t)row * op->ldy;
}
/* Where a row of the result goes: the caller's logits if the op names no buffer. */
static inline float *slm_out(const slm_ctx *c, const slm_op *op, int32_t row) {
  return op->out < 0 ? c->batch->logits + (int64_t)row * c->program->vocab
                     : (float *)(c->workspace + op->out) + (int64_t)row * op->ldout;
}
/* What a matmul makes, from a column on, and how far it is to the next row; what a folded PREPARE rounds. */
static inline float *slm_made(const slm_ctx *c, const slm_op *op, int32_t row, int32_t column) {
  const slm_fold *f = &c->fold;
  return f->at ? f->at + (int64_t)(row - f->row) * f->ld + (column - f->column) : slm_out(c, op, row) + column;
}
static inline int32_t slm_made_ld(const slm_ctx *c, const slm_op *op) { return c->fold.at ? c->fold.ld : op->ldout; }
static inline uint8_t *slm_act(const slm_ctx *c, const slm_op *op) {
  return c->narrow && !op->used ? c->act + op->act_narrow : c->workspace + op->act_wide;
}
/* cos (half floats), then sin, of one token. */
static inline const float *slm_turn(const slm_ctx *c, int32_t rope, int32_t token) {
  return c->turn + c->turn_at[rope] + (int64_t)token * 2 * c->program->ropes[rope].half;
}
static inline void slm_flag(const slm_ctx *c, int32_t token) {
  __atomic_store_n(&c->batch->bad[token], 1, __ATOMIC_RELAXED);
}
/* Bytes from a panel of the op's weights to the next, with that of the second matrix between them. */
static inline int64_t slm_panel_step(const slm_op *op) {
  return slm_panel_bytes(op->type, op->k) + (op->epilogue == SLM_GATED ? slm_panel_bytes(op->type2, op->k) : 0);
}
/* Tokens a tile of the act layout takes when `left` rows are left: full tiles, then the least power of two that fits. */
static inline int32_t slm_tile(int32_t full, int32_t left) {
  int32_t width = full;
  while (width / 2 >= left) width /= 2;
  return width;
}

/* cos and sin of position · frequency, times magnitude: float32 (2, half). */
void slm_turns(int32_t position, const double *frequency, int32_t half, float magnitude, float *out);

/* What isa/<isa>.c provides. Ranges are half-open. */
typedef struct {
  const char *name;
  int (*here)(void);
  int32_t tile;      /* tokens in a full tile of activations, a power of two */
  int32_t act_bytes; /* of activations that matmul goes through again and again, for panel after panel */
  void (*norm)(const slm_ctx *, const slm_op *, int32_t row, int32_t stop);
  void (*prepare)(const slm_ctx *, const slm_op *, int32_t row, int32_t stop, int32_t column, int32_t column_stop);
  void (*matmul)(const slm_ctx *, const slm_op *, int32_t row, int32_t stop, int32_t panel, int32_t panel_stop);
  void (*rope)(const slm_ctx *, const slm_op *, int32_t row, int32_t stop);
  void (*store)(const slm_ctx *, const slm_op *, int32_t row, int32_t stop, int32_t head, int32_t head_stop);
  /* One KV head of a unit: all segments, or only one, which goes to ctx->parts until attend_merge adds first … last. */
  void (*attend)(const slm_ctx *, const slm_op *, const slm_unit *, int32_t head, int32_t only);
  void (*attend_merge)(const slm_ctx *, const slm_op *, const slm_unit *, int32_t head, int32_t first, int32_t last);
  void (*glu)(const slm_ctx *, const slm_op *, int32_t row, int32_t stop);
  void (*add)(const slm_ctx *, const slm_op *, int32_t row, int32_t stop);
  void (*map)(const slm_ctx *, const slm_op *, int32_t row, int32_t stop);
  void (*route)(const slm_ctx *, const slm_op *, int32_t row, int32_t stop);
  void (*mix)(const slm_ctx *, const slm_op *, int32_t row, int32_t stop);
  void (*prepare_groups)(const slm_ctx *, const slm_op *, int32_t tile, int32_t stop);
  void (*experts)(const slm_ctx *, const slm_op *, int32_t active, int32_t panel, int32_t panel_stop);
  int32_t probe_sums; /* dots in a round of probe_dots */
  int32_t (*probe_dots)(int64_t rounds);
  int32_t (*probe_read)(const uint8_t *, int64_t bytes);
} slm_isa;

/* What this CPU and its system have (cpu.c). AVX2 stands for AVX2, FMA and F16C; AVX512 for F, BW, DQ and VL. */
enum {
  SLM_CPU_AVX2 = 1, SLM_CPU_AVXVNNI = 2, SLM_CPU_AVX512 = 4, SLM_CPU_AVX512VNNI = 8, SLM_CPU_DOTPROD = 16,
  SLM_CPU_AMX = 32 /* tiles of int8, which the process has leave to use */
};
/* Whether the compiler knows AMX's tiles, and the system is one whose leave to use them cpu.c can ask. */
#if defined(__clang__)
#define SLM_COMPILES_AMX (__clang_major__ >= 12)
#else
#define SLM_COMPILES_AMX (__GNUC__ >= 11)
#endif
#if defined(__x86_64__) && defined(__linux__) && SLM_COMPILES_AMX
#define SLM_WITH_AMX 1
#else
#define SLM_WITH_AMX 0
#endif
int slm_cpu_has(int features);
extern int slm_fetch_far; /* how to fetch ahead (lanes.h): far, past the outer caches, or near, through all; set by the first question */

/* The table of dispatch.c. */
const slm_isa *slm_isa_find(const char *name); /* NULL: the best here; a NULL result: none of that name here */

/* The first position that a token at `position` sees. */
static inline int32_t slm_seen_from(const slm_op *op, int32_t position) {
  return op->window > 0 && position >= op->window ? position - op->window + 1 : 0;
}
/* Floats of kernel scratch that storing and attending take: a block of keys and values, a tile's weights, and of every
   column (a last tile may be filled up by 15) q, o, sum, l and its share of the tile's state. */
static inline int64_t slm_attend_floats(const slm_op *op) {
  const int64_t wide = (op->dv + 15) / 16 * 16, group = op->heads / op->kv_heads;
  return SLM_PAGE * (op->dk + wide + 16) + ((group > SLM_COLUMNS ? group : SLM_COLUMNS) + 15) * (op->dk + 2 * wide + 32 + SLM_COLUMNS_FLOATS / 2);
}
static inline int64_t slm_part_floats(const slm_op *op) { return 16 + (op->dv + 15) / 16 * 16; }

/* Threads that run one job together (pool.c). Thread 0 is the caller. */
typedef struct slm_pool slm_pool;
typedef void (*slm_job)(void *state, int32_t thread);
slm_pool *slm_pool_new(int32_t threads);
void slm_pool_free(slm_pool *pool);
/* How many threads have cores to run on, as far as the last jobs told. */
int32_t slm_pool_fit(slm_pool *pool);
/* On `threads` of the pool's threads. SLM_OK, or SLM_E_MEMORY after a fork without threads. */
int32_t slm_pool_run(slm_pool *pool, int32_t threads, slm_job job, void *state);
void slm_pool_barrier(slm_pool *pool);

#endif
