/* Sampling: from the logits of one position to one token, with the same bits on every machine.

   What makes it so: probabilities are integers (exp(x - max) in units of 2^-40, rounded once), hence every sum over
   them is exact and has no order; exp and log are made here of IEEE additions, multiplications and divisions; ties go
   to the smaller id; the random number is a hash of (seed, index). tinyslm/sampling.py is the twin in NumPy.

   What makes it quick: nothing is ever sorted. A candidate is one 64-bit key, its logit above its inverted id, so keys
   are distinct and compare as (logit descending, id ascending); candidates stay in ascending id order. top-k and
   top-p keep the keys from some cutoff on, and cutoff() finds it by narrowing a range of keys through histograms,
   by count or by weight. typical-p is the same with another key. For a small top-k the maxima of blocks of 128 logits
   bound the k-th largest from below, so that only the few blocks reaching that bound are read twice.

   The meaning of each step is that of llama.cpp's samplers with min_keep 1 (src/llama-sampling.cpp). */
/* GCC vectorises a comparison only when told that nobody reads the exception flags; values do not change. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-trapping-math")
#endif

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "engine.h"
#include "fpstate.h"
#include "lanes.h"
#include "weight.h"

enum { BLOCK = 128, MAX_VOCAB = 1 << 22, WEIGHT_BITS = SLM_WEIGHT_BITS, BUCKETS = 256 };

typedef struct {
    uint64_t *key;    /* candidates, ascending id */
    uint64_t *weight; /* exp of each candidate in units of 2^-40; before that, room for counts and block keys */
    float *adjusted;  /* logits after bias, mask and penalties, when there are any */
    int32_t *member;  /* positions that cutoff() has left */
    float *maxima;    /* largest logit of each block */
    const float *sixteens; /* of each 16, where they are known */
} workspace;

static int32_t block_count(int32_t n) { return (n + BLOCK - 1) / BLOCK; }

static size_t padded(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

size_t slm_sample_scratch(int32_t n_vocab)
{
    if (n_vocab < 1 || n_vocab > MAX_VOCAB)
        return 0;
    size_t n = (size_t)n_vocab;
    return 2 * padded(n * 8) + 2 * padded(n * 4) + padded((size_t)block_count(n_vocab) * 4);
}

static workspace divide_scratch(void *scratch, int32_t n_vocab)
{
    size_t n = (size_t)n_vocab;
    unsigned char *at = scratch;
    workspace w = {0};
    w.key = (uint64_t *)(void *)at;
    w.weight = (uint64_t *)(void *)(at += padded(n * 8));
    w.adjusted = (float *)(void *)(at += padded(n * 8));
    w.member = (int32_t *)(void *)(at += padded(n * 4));
    w.maxima = (float *)(void *)(at + padded(n * 4));
    return w;
}

/* ---- arithmetic ---- */

static inline uint32_t bits_of_float(float v) { uint32_t u; memcpy(&u, &v, 4); return u; }
static inline float float_of_bits(uint32_t u) { float v; memcpy(&v, &u, 4); return v; }

static inline uint64_t weight_of(double d) { return slm_weight(d > SLM_WEIGHT_LEAST ? d : SLM_WEIGHT_LEAST); }

/* Natural logarithm of a positive normal double: y = 2^e m, sqrt(1/2) <= m < sqrt(2), log m = 2 atanh((m-1)/(m+1));
   absolute error of the series below 2e-14. */
static double natural_log(double y)
{
    uint64_t bits = slm_double_bits(y);
    int e = (int)(bits >> 52) - 1023;
    double m = slm_bits_double((bits & 0xfffffffffffffu) | 0x3ff0000000000000u);
    if (m >= 1.4142135623730951) {
        m = m * 0.5;
        e++;
    }
    double f = (m - 1.0) / (m + 1.0), g = f * f, s = 1.0 / 15.0;
    for (int odd = 13; odd >= 1; odd -= 2)
        s = s * g + 1.0 / (double)odd;
    return (double)e * 0.6931471805599453 + 2.0 * f * s;
}

/* high and low half of a * b */
static uint64_t multiply_wide(uint64_t a, uint64_t b, uint64_t *low)
{
    uint64_t al = (uint32_t)a, ah = a >> 32, bl = (uint32_t)b, bh = b >> 32;
    uint64_t mid = ah * bl + (al * bl >> 32), cross = al * bh + (uint32_t)mid;
    *low = a * b;
    return ah * bh + (mid >> 32) + (cross >> 32);
}

/* SplitMix64 (Steele, Lea, Flood 2014): the finaliser, and its index-th output from a state that hashes the seed. */
static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t random_bits(uint64_t seed, uint64_t index)
{
    const uint64_t golden = 0x9e3779b97f4a7c15u;
    return mix(mix(seed + golden) + (index + 1) * golden);
}

/* ---- keys ---- */

/* Adding +0 turns -0 into +0, so that the two are equal as keys. */
static inline uint64_t key_of(float x, int32_t id)
{
    uint32_t b = bits_of_float(x + 0.0f);
    uint32_t ordered = b ^ ((0u - (b >> 31)) | 0x80000000u);
    return (uint64_t)ordered << 32 | (0xffffffffu - (uint32_t)id);
}

static inline float key_logit(uint64_t key)
{
    uint32_t ordered = (uint32_t)(key >> 32);
    return float_of_bits(ordered ^ (((ordered >> 31) - 1u) | 0x80000000u));
}

static inline int32_t key_id(uint64_t key) { return (int32_t)(0xffffffffu - (uint32_t)key); }

/* The key at which a walk in descending order has gathered `target` (>= 1, <= the sum) of weight; NULL weighs 1 each.
   Each round splits the range of the members left into at most 256 buckets and goes on with the one that holds it. */
static uint64_t cutoff(const uint64_t *key, const uint64_t *weight, int32_t n, uint64_t target, int32_t *member)
{
    for (int32_t i = 0; i < n; i++)
        member[i] = i;
    for (;;) {
        uint64_t sum[BUCKETS] = {0}, low = UINT64_MAX, high = 0;
        for (int32_t i = 0; i < n; i++) {
            uint64_t k = key[member[i]];
            low = k < low ? k : low;
            high = k > high ? k : high;
        }
        if (low == high)
            return low;
        int shift = 0;
        while ((high - low) >> shift >= BUCKETS)
            shift++;
        for (int32_t i = 0; i < n; i++)
            sum[(key[member[i]] - low) >> shift] += weight ? weight[member[i]] : 1;
        uint64_t bucket = (high - low) >> shift;
        while (bucket > 0 && sum[bucket] < target)
            target -= sum[bucket--];
        int32_t left = 0;
        for (int32_t i = 0; i < n; i++) {
            int32_t at = member[i];
            member[left] = at;
            left += (key[at] - low) >> shift == bucket;
        }
        n = left;
    }
}

static int32_t keep_from(uint64_t *key, int32_t n, uint64_t least)
{
    int32_t kept = 0;
    for (int32_t i = 0; i < n; i++) {
        uint64_t k = key[i];
        key[kept] = k;
        kept += k >= least;
    }
    return kept;
}

static void sort_descending(uint64_t *key, int32_t n) /* heap sort: bounded time, no recursion */
{
    for (int32_t start = n / 2, end = n; end > 1;) {
        if (start > 0) {
            start--;
        } else {
            uint64_t least = key[0];
            key[0] = key[--end];
            key[end] = least;
        }
        int32_t hole = start;
        uint64_t k = key[hole];
        for (int32_t child; (child = 2 * hole + 1) < end; hole = child) {
            if (child + 1 < end && key[child + 1] < key[child])
                child++;
            if (key[child] >= k)
                break;
            key[hole] = key[child];
        }
        key[hole] = k;
    }
}

/* ---- passes over the vocabulary ---- */

static inline int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

/* Bits that compare as integers like their floats, NaNs of either sign beyond the infinities. GCC makes vector code of
   integer maxima, of float maxima it does not. */
static inline int32_t ordered_bits(float x)
{
    int32_t b = (int32_t)bits_of_float(x);
    return b ^ ((b >> 31) & INT32_MAX);
}

static float block_maximum(const float *x, uint32_t *bad)
{
    const int32_t plus_infinity = 0x7f800000, minus_infinity = -plus_infinity - 1;
    int32_t even = INT32_MIN, odd = INT32_MIN; /* two chains: one would be bound by its latency */
    uint32_t below = 0;
    for (int i = 0; i < BLOCK / 2; i++) {
        int32_t a = ordered_bits(x[i]), b = ordered_bits(x[i + BLOCK / 2]);
        even = larger(a, even);
        odd = larger(b, odd);
        below |= (uint32_t)(a < minus_infinity) | (uint32_t)(b < minus_infinity);
    }
    int32_t most = larger(even, odd);
    *bad |= below | (most >= plus_infinity);
    return float_of_bits((uint32_t)(most ^ ((most >> 31) & INT32_MAX)));
}

/* The block maxima of all logits; whether any is NaN or +inf. */
static uint32_t maxima_of_logits(const float *x, int32_t n, float *maxima)
{
    uint32_t bad = 0;
    int32_t whole = n / BLOCK;
    for (int32_t b = 0; b < whole; b++)
        maxima[b] = block_maximum(x + (size_t)b * BLOCK, &bad);
    if (n % BLOCK) {
        float last[BLOCK];
        for (int32_t i = 0, from = whole * BLOCK; i < BLOCK; i++)
            last[i] = from + i < n ? x[from + i] : -INFINITY;
        maxima[whole] = block_maximum(last, &bad);
    }
    return bad;
}

static float greatest(const float *x, int32_t n)
{
    float most = -INFINITY;
    for (int32_t i = 0; i < n; i++)
        most = x[i] > most ? x[i] : most;
    return most;
}

/* Fills the block maxima and *max; SLM_E_NONFINITE for a NaN or +inf anywhere, or when all are -inf. */
static int32_t find_maxima(const float *x, int32_t n, const workspace *w, float *max)
{
    enum { EACH = BLOCK / 16 };
    int32_t known = w->sixteens ? (int32_t)slm_sixteens(n) : 0;
    for (int32_t at = 0; at < known; at += EACH)
        w->maxima[at / EACH] = greatest(w->sixteens + at, known - at < EACH ? known - at : EACH);
    uint32_t bad = w->sixteens ? 0 : maxima_of_logits(x, n, w->maxima);
    *max = greatest(w->maxima, block_count(n));
    return bad || !(*max > -INFINITY) ? SLM_E_NONFINITE : 0;
}

static int32_t first_equal(const float *x, int32_t n, const float *maxima, float max)
{
    int32_t b = 0;
    while (b + 1 < block_count(n) && maxima[b] != max)
        b++;
    int32_t i = b * BLOCK;
    while (i + 1 < n && x[i] != max)
        i++;
    return i;
}

/* Keys of the finite logits i ... end - 1 that reach the bound; how many. */
static inline int32_t gather_from(const float *x, int32_t i, int32_t end, float bound, uint64_t *key)
{
    int32_t m = 0;
    for (; i < end; i++) {
        key[m] = key_of(x[i], i);
        m += (x[i] >= bound) & (x[i] > -INFINITY);
    }
    return m;
}

/* Keys of the k largest finite logits, in ascending id order. */
static int32_t gather_largest(const float *x, int32_t n, int32_t k, const workspace *w)
{
    int32_t blocks = block_count(n), m = 0;
    float bound = -INFINITY; /* at least k logits reach it */
    if (k < blocks) {
        for (int32_t b = 0; b < blocks; b++)
            w->weight[b] = key_of(w->maxima[b], b);
        bound = key_logit(cutoff(w->weight, NULL, blocks, (uint64_t)k, w->member));
    }
    for (int32_t b = 0; b < blocks; b++) {
        if (!(w->maxima[b] >= bound))
            continue;
        int32_t end = (b + 1) * BLOCK < n ? (b + 1) * BLOCK : n;
        for (int32_t at = b * BLOCK; at < end; at += 16)
            if (!w->sixteens || w->sixteens[at / 16] >= bound)
                m += gather_from(x, at, at + 16 < end ? at + 16 : end, bound, w->key + m);
    }
    return m > k ? keep_from(w->key, m, cutoff(w->key, NULL, m, (uint64_t)k, w->member)) : m;
}

typedef float eight_floats __attribute__((vector_size(32)));
typedef double eight_doubles __attribute__((vector_size(64)));
typedef uint64_t eight_bits __attribute__((vector_size(64)));
#define WEIGHT_ISA plain
#include "weight.inc"
#if defined(__x86_64__)
TARGET_BEGIN("avx2")
#define WEIGHT_ISA avx2
#include "weight.inc"
TARGET_END
TARGET_BEGIN("avx512f,avx512dq,avx2")
#define WEIGHT_ISA avx512
#include "weight.inc"
TARGET_END
#endif

static uint64_t raw_total(const float *x, int32_t n, double max)
{
#if defined(__x86_64__)
    if (slm_cpu_has(SLM_CPU_AVX512))
        return total_weight_avx512(x, n, max);
    if (slm_cpu_has(SLM_CPU_AVX2))
        return total_weight_avx2(x, n, max);
#endif
    return total_weight_plain(x, n, max);
}

/* ---- the steps ---- */

static int is_finite(float v) { return v > -INFINITY && v < INFINITY; }

static int ids_in_range(const int32_t *ids, int32_t count, int32_t n_vocab)
{
    for (int32_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= n_vocab)
            return 0;
    return 1;
}

static int arguments_hold(const float *logits, int32_t n_vocab, const slm_sampler *s, const int32_t *recent,
                          int32_t n_recent, const int32_t *bias_ids, const float *bias, int32_t n_bias, int32_t n_top,
                          const int32_t *top_ids, const float *top_logprobs, const void *scratch)
{
    if (!logits || !s || !scratch || (uintptr_t)scratch % 64 || n_vocab < 1 || n_vocab > MAX_VOCAB)
        return 0;
    if (n_recent < 0 || n_bias < 0 || n_top < 0 || n_top > n_vocab || (n_recent && !recent))
        return 0;
    if ((n_bias && (!bias_ids || !bias)) || (n_top && (!top_ids || !top_logprobs)))
        return 0;
    if (!is_finite(s->temperature) || !is_finite(s->frequency_penalty) || !is_finite(s->presence_penalty))
        return 0;
    if (!is_finite(s->repeat_penalty) || s->repeat_penalty <= 0.0f)
        return 0;
    if (!(s->top_p >= 0.0f) || !(s->typical_p >= 0.0f) || !(s->min_p <= 1.0f))
        return 0;
    for (int32_t i = 0; i < n_bias; i++)
        if (!(bias[i] < INFINITY))
            return 0;
    return ids_in_range(recent, n_recent, n_vocab) && ids_in_range(bias_ids, n_bias, n_vocab);
}

static int has_penalties(const slm_sampler *s)
{
    return s->repeat_penalty != 1.0f || s->frequency_penalty != 0.0f || s->presence_penalty != 0.0f;
}

/* A positive logit is divided by repeat_penalty, any other multiplied; then count * frequency + presence goes off. */
static void penalise(float *x, const slm_sampler *s, const int32_t *recent, int32_t n_recent, uint32_t *count)
{
    for (int32_t i = 0; i < n_recent; i++)
        count[recent[i]] = 0;
    for (int32_t i = 0; i < n_recent; i++)
        count[recent[i]]++;
    for (int32_t i = 0; i < n_recent; i++) {
        int32_t id = recent[i];
        if (count[id] == 0)
            continue;
        float v = x[id] <= 0.0f ? x[id] * s->repeat_penalty : x[id] / s->repeat_penalty;
        x[id] = v - ((float)count[id] * s->frequency_penalty + s->presence_penalty);
        count[id] = 0; /* once for each id */
    }
}

static void apply_mask(float *x, int32_t n, const uint32_t *mask)
{
    for (int32_t from = 0; from < n; from += 32) {
        uint32_t word = mask[from / 32], chosen[32];
        if (word == 0xffffffffu)
            continue;
        for (uint32_t i = 0; i < 32; i++) /* no branch: the bits of a mask are hard to predict */
            chosen[i] = 0u - (word >> i & 1u);
        int32_t end = n - from < 32 ? n - from : 32;
        for (int32_t i = 0; i < end; i++) {
            uint32_t b = bits_of_float(x[from + i]) & chosen[i];
            x[from + i] = float_of_bits(b | (~chosen[i] & 0xff800000u)); /* -inf */
        }
    }
}

static uint64_t largest_key(const uint64_t *key, int32_t n)
{
    uint64_t most = key[0];
    for (int32_t i = 1; i < n; i++)
        most = key[i] > most ? key[i] : most;
    return most;
}

/* weight[i] = exp((logit i - largest logit) * rate) in units of 2^-40; returns their sum. */
static uint64_t weigh(const uint64_t *key, int32_t n, double rate, uint64_t *weight)
{
    double max = key_logit(largest_key(key, n));
    uint64_t total = 0;
    for (int32_t i = 0; i < n; i++) {
        weight[i] = weight_of(((double)key_logit(key[i]) - max) * rate);
        total += weight[i];
    }
    return total;
}

/* Keeps the tokens whose surprise -log p is nearest to the entropy, until their probabilities exceed p.
   With d = max - logit both contain log(sum), so their distance is |d - mean of d|. */
static int32_t keep_typical(const float *x, int32_t n, float p, const workspace *w)
{
    uint64_t total = weigh(w->key, n, 1.0, w->weight), sum = 0, low;
    double max = key_logit(largest_key(w->key, n));
    for (int32_t i = 0; i < n; i++)
        sum += (uint64_t)((double)w->weight[i] * (max - (double)key_logit(w->key[i])));
    double mean = (double)sum / (double)total;
    for (int32_t i = 0; i < n; i++) {
        double away = (max - (double)key_logit(w->key[i])) - mean;
        away = away < 0.0 ? -away : away;
        float distance = (float)(away < 1e30 ? away : 1e30);
        w->key[i] = key_of(-distance, key_id(w->key[i]));
    }
    uint64_t target = multiply_wide((uint64_t)((double)p * 18446744073709551616.0), total, &low) + 1;
    n = keep_from(w->key, n, cutoff(w->key, w->weight, n, target, w->member));
    for (int32_t i = 0; i < n; i++)
        w->key[i] = key_of(x[key_id(w->key[i])], key_id(w->key[i]));
    return n;
}

/* Keeps the most likely tokens, one at least, until their probabilities reach p, rounded down to a unit of weight. */
static int32_t keep_top_p(int32_t n, float p, const workspace *w)
{
    uint64_t total = weigh(w->key, n, 1.0, w->weight), low;
    uint64_t target = multiply_wide((uint64_t)((double)p * 18446744073709551616.0), total, &low);
    return keep_from(w->key, n, cutoff(w->key, w->weight, n, target + (target == 0), w->member));
}

/* Keeps the tokens at least p times as likely as the most likely one. */
static int32_t keep_min_p(uint64_t *key, int32_t n, float p)
{
    double max = key_logit(largest_key(key, n)), least = natural_log((double)p);
    int32_t kept = 0;
    for (int32_t i = 0; i < n; i++) {
        uint64_t k = key[i];
        key[kept] = k;
        kept += (double)key_logit(k) - max >= least;
    }
    return kept;
}

static int32_t draw(const float *x, int32_t n, const slm_sampler *s, uint64_t index, const workspace *w)
{
    int32_t m = gather_largest(x, n, s->top_k > 0 ? s->top_k : n, w), i = 0;
    if (s->typical_p < 1.0f)
        m = keep_typical(x, m, s->typical_p, w);
    if (s->top_p < 1.0f)
        m = keep_top_p(m, s->top_p, w);
    if (s->min_p > 0.0f)
        m = keep_min_p(w->key, m, s->min_p);
    uint64_t total = weigh(w->key, m, 1.0 / (double)s->temperature, w->weight), low;
    uint64_t at = multiply_wide(random_bits(s->seed, index), total, &low);
    while (at >= w->weight[i])
        at -= w->weight[i++];
    return key_id(w->key[i]);
}

static void report_top(const float *x, int32_t n, double log_sum, int32_t n_top, int32_t *ids, float *logprobs,
                       const workspace *w)
{
    int32_t found = gather_largest(x, n, n_top, w);
    sort_descending(w->key, found);
    for (int32_t i = 0; i < n_top; i++) {
        ids[i] = i < found ? key_id(w->key[i]) : -1;
        logprobs[i] = i < found ? (float)((double)x[ids[i]] - log_sum) : -INFINITY;
    }
}

/* Kept out of line, so that no arithmetic moves across the change of floating-point state. */
__attribute__((noinline)) static int32_t
sample_checked(const float *logits, int32_t n, const slm_sampler *s, uint64_t index,
               const int32_t *recent, int32_t n_recent, const int32_t *bias_ids, const float *bias, int32_t n_bias,
               const uint32_t *mask, float *logprob, int32_t n_top, int32_t *top_ids, float *top_logprobs, workspace *w)
{
    float max;
    double log_sum = 0.0;
    int32_t error = find_maxima(logits, n, w, &max);
    if (error)
        return error;
    if (logprob || n_top) {
        double units = (double)((uint64_t)1 << WEIGHT_BITS);
        log_sum = (double)max + natural_log((double)raw_total(logits, n, (double)max) / units);
    }
    if (n_top)
        report_top(logits, n, log_sum, n_top, top_ids, top_logprobs, w);

    const float *x = logits;
    int penalties = n_recent && has_penalties(s);
    if (n_bias || mask || penalties) {
        memcpy(w->adjusted, logits, (size_t)n * sizeof *logits);
        for (int32_t i = 0; i < n_bias; i++)
            w->adjusted[bias_ids[i]] += bias[i];
        if (mask)
            apply_mask(w->adjusted, n, mask);
        if (penalties)
            penalise(w->adjusted, s, recent, n_recent, (uint32_t *)(void *)w->weight);
        w->sixteens = NULL;
        error = find_maxima(w->adjusted, n, w, &max);
        if (error)
            return error;
        x = w->adjusted;
    }
    int32_t token = s->temperature > 0.0f ? draw(x, n, s, index, w) : first_equal(x, n, w->maxima, max);
    if (logprob)
        *logprob = (float)((double)logits[token] - log_sum);
    return token;
}

int32_t slm_sample(const float *logits, const float *maxima, int32_t n_vocab, const slm_sampler *s, uint64_t index,
                   const int32_t *recent, int32_t n_recent, const int32_t *bias_ids, const float *bias, int32_t n_bias,
                   const uint32_t *mask, float *logprob, int32_t n_top, int32_t *top_ids, float *top_logprobs, void *scratch)
{
    slm_fpstate state = slm_fpstate_enter();
    int32_t token = SLM_E_ARGUMENT;
    if (arguments_hold(logits, n_vocab, s, recent, n_recent, bias_ids, bias, n_bias, n_top, top_ids, top_logprobs,
                       scratch)) {
        workspace w = divide_scratch(scratch, n_vocab);
        w.sixteens = maxima;
        token = sample_checked(logits, n_vocab, s, index, recent, n_recent, bias_ids, bias, n_bias, mask, logprob,
                               n_top, top_ids, top_logprobs, &w);
    }
    slm_fpstate_leave(state);
    return token;
}
