/* An engine's state, for what makes its steps ready (program.c) and what walks through the ops (walk.c). */
#ifndef SLM_PROGRAM_H
#define SLM_PROGRAM_H
#include "engine.h"

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

/* One thread's part of the engine's step: a slm_job. */
void slm_walk(void *engine, int32_t thread);

#endif
