/* Persistent threads. Between jobs and at barriers a thread spins for a while, since the others are nearly there, and
   then sleeps, so that an idle or crowded machine is not burdened. */
#if defined(__linux__)
#define _GNU_SOURCE
#include <linux/futex.h>
#include <sys/syscall.h>
#endif
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>
#include "engine.h"

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif
enum { SPINS = 2000 }; /* pauses: 20 to 70 µs */

/* A word that threads wait on. */
typedef struct {
  _Alignas(64) int32_t value;
  int32_t sleepers;
#if !defined(__linux__)
  pthread_mutex_t mutex;
  pthread_cond_t cond;
#endif
} event;

struct slm_pool {
  event start, phase;           /* counts of jobs, and of barriers passed */
  _Alignas(64) int32_t arrived; /* threads at the barrier */
  _Alignas(64) int32_t threads, closing;
  slm_job job;
  void *state;
  pid_t owner;
  pthread_t *ids;
};

static void event_init(event *e) {
  e->value = e->sleepers = 0;
#if !defined(__linux__)
  pthread_mutex_init(&e->mutex, NULL);
  pthread_cond_init(&e->cond, NULL);
#endif
}

/* Returns once the value is no longer `seen`. */
static void event_wait(event *e, int32_t seen) {
  for (int i = 0; i < SPINS; i++) {
    if (__atomic_load_n(&e->value, __ATOMIC_ACQUIRE) != seen) return;
    PAUSE();
  }
  __atomic_fetch_add(&e->sleepers, 1, __ATOMIC_SEQ_CST);
#if defined(__linux__)
  while (__atomic_load_n(&e->value, __ATOMIC_SEQ_CST) == seen)
    syscall(SYS_futex, &e->value, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
#else
  pthread_mutex_lock(&e->mutex);
  while (__atomic_load_n(&e->value, __ATOMIC_SEQ_CST) == seen) pthread_cond_wait(&e->cond, &e->mutex);
  pthread_mutex_unlock(&e->mutex);
#endif
  __atomic_fetch_sub(&e->sleepers, 1, __ATOMIC_SEQ_CST);
}

static void event_advance(event *e) {
  __atomic_fetch_add(&e->value, 1, __ATOMIC_SEQ_CST);
  if (!__atomic_load_n(&e->sleepers, __ATOMIC_SEQ_CST)) return;
#if defined(__linux__)
  syscall(SYS_futex, &e->value, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
#else
  pthread_mutex_lock(&e->mutex);
  pthread_cond_broadcast(&e->cond);
  pthread_mutex_unlock(&e->mutex);
#endif
}

void slm_pool_barrier(slm_pool *p) {
  if (p->threads == 1) return;
  int32_t seen = __atomic_load_n(&p->phase.value, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&p->arrived, 1, __ATOMIC_ACQ_REL) < p->threads) {
    event_wait(&p->phase, seen);
  } else {
    __atomic_store_n(&p->arrived, 0, __ATOMIC_RELAXED);
    event_advance(&p->phase);
  }
}

typedef struct {
  slm_pool *pool;
  int32_t thread, seen;
} worker;

static void *work(void *argument) {
  worker w = *(worker *)argument;
  free(argument);
  for (;;) {
    event_wait(&w.pool->start, w.seen);
    w.seen = __atomic_load_n(&w.pool->start.value, __ATOMIC_ACQUIRE);
    if (w.pool->closing) return NULL;
    w.pool->job(w.pool->state, w.thread);
    slm_pool_barrier(w.pool);
  }
}

static void stop_threads(slm_pool *p, int32_t started) {
  p->closing = 1;
  event_advance(&p->start);
  for (int32_t i = 1; i < started; i++) pthread_join(p->ids[i], NULL);
  p->closing = 0;
}

/* Threads 1 … of the pool; signals go to the caller's threads, not to these. */
static int32_t start_threads(slm_pool *p) {
  sigset_t all, before;
  int32_t i = 1;
  event_init(&p->start), event_init(&p->phase);
  p->arrived = 0, p->owner = getpid();
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  for (; i < p->threads; i++) {
    worker *w = malloc(sizeof *w);
    if (!w) break;
    *w = (worker){p, i, 0};
    if (pthread_create(&p->ids[i], NULL, work, w)) {
      free(w);
      break;
    }
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (i == p->threads) return SLM_OK;
  stop_threads(p, i);
  return SLM_E_MEMORY;
}

slm_pool *slm_pool_new(int32_t threads) {
  slm_pool *p = aligned_alloc(64, (sizeof *p + 63) / 64 * 64);
  pthread_t *ids = calloc((size_t)threads, sizeof *ids);
  if (p && ids) {
    p->threads = threads, p->ids = ids, p->closing = 0;
    if (start_threads(p) == SLM_OK) return p;
  }
  free(ids);
  free(p);
  return NULL;
}

void slm_pool_free(slm_pool *p) {
  if (!p) return;
  if (p->owner == getpid()) stop_threads(p, p->threads);
  free(p->ids);
  free(p);
}

int32_t slm_pool_run(slm_pool *p, slm_job job, void *state) {
  if (p->owner != getpid()) { /* a fork copies the memory, not the threads */
    int32_t error = start_threads(p);
    if (error) return p->owner = 0, error;
  }
  p->job = job, p->state = state;
  event_advance(&p->start);
  job(state, 0);
  slm_pool_barrier(p);
  return SLM_OK;
}
