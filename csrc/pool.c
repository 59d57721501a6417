/* Persistent threads. Between jobs and at barriers a thread spins for a while, since the others are nearly there, and
   then sleeps.

   That is right as long as every thread has a core. Where one has to share its core, all wait for it at each barrier,
   and each wait gives a core away that takes a time slice to get back. So, once a barrier took long, the threads note
   how long the system kept them from running; where that adds up to more than a thread less would cost, the pool asks
   for a thread less, and from time to time tries the next one again. The bits do not depend on it. */
#if defined(__linux__)
#define _GNU_SOURCE
#include <linux/futex.h>
#include <sys/syscall.h>
#endif
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include "engine.h"

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

/* Nanoseconds. */
enum {
  SPIN_BARRIER = 50000,
  SPIN_START = 200000, /* about what comes between two steps: sampling, a token's text */
  WAKING = 20000,      /* what a thread may take to wake on a core that is free */
  WINDOW = 20000000,   /* over which is judged whether the threads have their cores */
  HOLD_LEAST = 50000000, HOLD_MOST = 1600000000 /* how long one thread less is kept */
};

/* A word that threads wait on. */
typedef struct {
  _Alignas(64) int32_t value;
  int32_t sleepers;
  int64_t advanced; /* when the value changed, if somebody slept */
#if !defined(__linux__)
  pthread_mutex_t mutex;
  pthread_cond_t cond;
#endif
} event;

/* One of the threads. Thread 0 is the caller: it has no start. */
typedef struct {
  event start; /* a count of jobs */
  int64_t kept; /* ns that the system kept it from running in the last job that was watched */
  pthread_t id;
  slm_pool *pool;
  int32_t number;
} worker;

struct slm_pool {
  event phase;                  /* a count of barriers passed */
  _Alignas(64) int32_t arrived; /* threads at the barrier */
  int32_t late;                 /* somebody has slept at a barrier */
  _Alignas(64) int32_t threads, active, closing; /* active: in this job */
  slm_job job;
  void *state;
  worker *workers;
  pid_t owner;
  /* Crowding, the caller's: */
  int32_t fit, watched;      /* threads that have cores to run on, as far as is known; whether this job is watched */
  int64_t begun;             /* when the job began */
  int64_t wall, kept;        /* of the jobs of this window: how long they took, and the threads were kept */
  int64_t raised, hold, again; /* when `fit` last rose; how long it stays lowered, and until when */
};

/* How long this thread has slept at barriers, with what a thread takes to wake: ns, ever growing. */
static _Thread_local int64_t slept;

static int64_t clock_ns(clockid_t which) {
  struct timespec t;
  clock_gettime(which, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
static int64_t now(void) { return clock_ns(CLOCK_MONOTONIC); }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

static void event_init(event *e) {
  e->value = e->sleepers = 0;
#if !defined(__linux__)
  pthread_mutex_init(&e->mutex, NULL);
  pthread_cond_init(&e->cond, NULL);
#endif
}

static int changed(event *e, int32_t seen) { return __atomic_load_n(&e->value, __ATOMIC_ACQUIRE) != seen; }

/* Spins until the value is no longer `seen`, for `patience` ns at most; true if it changed. */
static int event_spin(event *e, int32_t seen, int64_t patience) {
  for (int64_t begun = 0, at; !changed(e, seen);) {
    for (int i = 0; i < 32 && !changed(e, seen); i++) PAUSE();
    at = now();
    if (!begun) begun = at;
    if (at - begun > patience) return changed(e, seen);
  }
  return 1;
}

/* Sleeps until the value is no longer `seen`. */
static void event_sleep(event *e, int32_t seen) {
  const int64_t begun = now();
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
  const int64_t woken = most(begun, __atomic_load_n(&e->advanced, __ATOMIC_RELAXED));
  slept += woken - begun + least(now() - woken, WAKING);
}

static void event_advance(event *e) {
  if (__atomic_load_n(&e->sleepers, __ATOMIC_RELAXED)) __atomic_store_n(&e->advanced, now(), __ATOMIC_RELAXED);
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
  const int32_t active = p->active; /* the next job's may be another, once all have arrived */
  if (active == 1) return;
  int32_t seen = __atomic_load_n(&p->phase.value, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&p->arrived, 1, __ATOMIC_ACQ_REL) < active) {
    if (event_spin(&p->phase, seen, SPIN_BARRIER)) return;
    __atomic_store_n(&p->late, 1, __ATOMIC_RELAXED);
    event_sleep(&p->phase, seen);
  } else {
    __atomic_store_n(&p->arrived, 0, __ATOMIC_RELAXED);
    event_advance(&p->phase);
  }
}

/* One thread's part of the job. Kept from running it was for as long as it neither ran nor slept. */
static void take_part(slm_pool *p, worker *w) {
  if (!p->watched) {
    p->job(p->state, w->number);
    return;
  }
  const int64_t waking = least(now() - p->begun, WAKING), ran = clock_ns(CLOCK_THREAD_CPUTIME_ID), before = slept;
  p->job(p->state, w->number);
  const int64_t idle = waking + slept - before;
  w->kept = now() - p->begun - (clock_ns(CLOCK_THREAD_CPUTIME_ID) - ran) - idle;
}

static void *work(void *argument) {
  worker *w = argument;
  for (int32_t seen = 0;; seen++) {
    if (!event_spin(&w->start, seen, SPIN_START)) event_sleep(&w->start, seen);
    if (w->pool->closing) return NULL;
    take_part(w->pool, w);
    slm_pool_barrier(w->pool);
  }
}

static void stop_threads(slm_pool *p, int32_t started) {
  p->closing = 1;
  for (int32_t i = 1; i < started; i++) event_advance(&p->workers[i].start);
  for (int32_t i = 1; i < started; i++) pthread_join(p->workers[i].id, NULL);
  p->closing = 0;
}

/* Threads 1 … of the pool; signals go to the caller's threads, not to these. */
static int32_t start_threads(slm_pool *p) {
  sigset_t all, before;
  int32_t i = 1;
  event_init(&p->phase);
  p->arrived = p->late = 0, p->owner = getpid();
  p->fit = p->threads, p->watched = 0, p->wall = p->kept = p->raised = 0, p->hold = HOLD_LEAST;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  for (; i < p->threads; i++) {
    worker *w = p->workers + i;
    event_init(&w->start), w->pool = p, w->number = i;
    if (pthread_create(&w->id, NULL, work, w)) break;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (i == p->threads) return SLM_OK;
  stop_threads(p, i);
  return SLM_E_MEMORY;
}

slm_pool *slm_pool_new(int32_t threads) {
  slm_pool *p = aligned_alloc(64, (sizeof *p + 63) / 64 * 64);
  worker *workers = aligned_alloc(64, sizeof *workers * (size_t)threads);
  if (p && workers) {
    p->threads = threads, p->workers = workers, p->closing = 0;
    workers[0].number = 0;
    if (start_threads(p) == SLM_OK) return p;
  }
  free(workers);
  free(p);
  return NULL;
}

void slm_pool_free(slm_pool *p) {
  if (!p) return;
  if (p->owner == getpid()) stop_threads(p, p->threads);
  free(p->workers);
  free(p);
}

int32_t slm_pool_fit(slm_pool *p) {
  if (p->fit < p->threads && now() >= p->again) {
    p->fit++, p->raised = now();
    p->watched = 1, p->wall = p->kept = 0;
  }
  return p->fit;
}

/* After a job that was watched. All wait for a thread that does not run: if the threads are kept for a share s of the time
   together, n of them do about (1 - s) n threads' work, which is no more than that of n - 1 from s = 1/n on. It is less
   where memory is the limit, hence n + 1. */
static void judge(slm_pool *p) {
  const int64_t end = now();
  int64_t kept = 0;
  for (int32_t i = 0; i < p->active; i++) kept += p->workers[i].kept;
  p->wall += end - p->begun, p->kept += kept;
  if (p->wall < WINDOW) return;
  if (p->kept * (p->active + 1) > p->wall && p->active == p->fit) {
    p->hold = end - p->raised > 8 * p->hold ? HOLD_LEAST : least(2 * p->hold, HOLD_MOST);
    p->fit--, p->again = end + p->hold;
  }
  p->watched = 0, p->wall = p->kept = 0;
}

int32_t slm_pool_run(slm_pool *p, int32_t threads, slm_job job, void *state) {
  if (p->owner != getpid()) { /* a fork copies the memory, not the threads */
    int32_t error = start_threads(p);
    if (error) return p->owner = 0, error;
  }
  if (threads > 1 && __atomic_exchange_n(&p->late, 0, __ATOMIC_RELAXED)) p->watched = 1;
  p->job = job, p->state = state, p->active = threads;
  if (p->watched) p->begun = now();
  for (int32_t i = 1; i < threads; i++) event_advance(&p->workers[i].start);
  take_part(p, p->workers);
  slm_pool_barrier(p);
  if (p->watched) judge(p);
  return SLM_OK;
}
