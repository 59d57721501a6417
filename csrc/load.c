/* Weights from a file to where they stand in memory: read by slices that the caches hold, and packed from
   there. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
#include "engine.h"

enum { SLICE = 1 << 20 }; /* bytes, about */

static int64_t slice_rows(const slm_source *s) {
  const int64_t whole = SLICE / (s->unit * slm_row_bytes(s->type, s->k));
  return (whole ? whole : 1) * s->unit;
}

static int64_t slices(const slm_source *s) { return (s->n + slice_rows(s) - 1) / slice_rows(s); }

/* False where the file ends early (errno 0) or cannot be read; *done: the bytes until there. */
static int read_at(int file, uint8_t *p, int64_t bytes, int64_t offset, int64_t *done) {
  for (*done = 0; *done < bytes;) {
    errno = 0;
    const ssize_t got = pread(file, p + *done, (size_t)(bytes - *done), (off_t)(offset + *done));
    if (got > 0) *done += got;
    else if (errno != EINTR) return 0;
  }
  return 1;
}

/* Rows first … first + n of a source, from `bytes`, where they stand as in the file. */
static void pack_rows(const slm_source *s, int32_t first, int32_t n, const uint8_t *bytes) {
  for (int32_t at = 0; at < n; at += PANEL) {
    int32_t rows[PANEL];
    for (int32_t r = 0; r < PANEL; r++) rows[r] = at + r >= n ? -1 : s->order ? s->order[first + at + r] - first : at + r;
    slm_pack(s->type, s->k, bytes, rows, 1, s->target + (first + at) / PANEL * s->step);
  }
}

/* One slice of a source, through `room` if it is to be packed. */
static void load_slice(slm_loading *l, int32_t source, int64_t slice, uint8_t *room) {
  const slm_source *s = l->sources + source;
  const int64_t row = slm_row_bytes(s->type, s->k), first = slice * slice_rows(s), left = s->n - first;
  const int64_t n = left < slice_rows(s) ? left : slice_rows(s), offset = s->offset + first * row;
  int64_t done;
  if (read_at(s->file, s->panels ? room : s->target + first * row, n * row, offset, &done)) {
    if (s->panels) pack_rows(s, (int32_t)first, (int32_t)n, room);
    __atomic_add_fetch(&l->done, n * row, __ATOMIC_RELAXED);
  } else {
    const int32_t error = errno;
    if (!__atomic_exchange_n(&l->stop, 1, __ATOMIC_RELAXED)) l->failed = source, l->offset = offset + done, l->error = error;
  }
}

int32_t slm_load(slm_loading *l) {
  int64_t most = 0;
  for (int32_t i = 0; i < l->count; i++) {
    const int64_t bytes = slice_rows(l->sources + i) * slm_row_bytes(l->sources[i].type, l->sources[i].k);
    if (l->sources[i].panels && bytes > most) most = bytes;
  }
  uint8_t *room = malloc((size_t)most + 1);
  if (!room) return SLM_E_MEMORY;
  int64_t before = 0; /* slices of the sources before i */
  for (int32_t i = 0; !__atomic_load_n(&l->stop, __ATOMIC_RELAXED);) {
    const int64_t mine = __atomic_fetch_add(&l->next, 1, __ATOMIC_RELAXED);
    for (; i < l->count && mine >= before + slices(l->sources + i); i++) before += slices(l->sources + i);
    if (i == l->count) break;
    load_slice(l, i, mine - before, room);
  }
  free(room);
  return SLM_OK;
}
