/* Decoding on without going back to Python for each token. There a token takes 20 µs, but 100 to 200 where the weights
   of a step have pushed the interpreter's code and data out of the caches. */
#include <stddef.h>
#include <stdint.h>
#include "engine.h"

static int32_t draw(const slm_batch *b, int32_t vocab, slm_draw *d, int32_t i, int32_t step, float *logprob) {
  const int32_t n = d->n_recent + step, window = n < d->last ? n : d->last;
  if (b->bad[i]) return SLM_E_NONFINITE;
  const int32_t token = slm_sample(b->logits + (size_t)i * vocab, b->maxima + i * slm_sixteens(vocab), vocab,
                                   d->sampler, d->index + step, d->recent + n - window, window, d->bias_ids, d->bias,
                                   d->n_bias, NULL, d->logprob ? logprob : NULL, 0, NULL, NULL, d->scratch);
  d->recent[n] = token;
  return token;
}

static int ends(const slm_draw *d, int32_t token) {
  for (int32_t i = 0; i < d->n_ends; i++)
    if (d->ends[i] == token) return 1;
  return 0;
}

int32_t slm_burst(slm_engine *engine, const slm_batch *batch, int32_t vocab, slm_draw *draws, int32_t steps,
                  const int32_t *halt, int32_t *tokens, float *logprobs) {
  const int32_t n = batch->n_sequences;
  slm_batch b = *batch;
  for (int32_t step = 0; step < steps; step++, b.ids = tokens, b.positions += n, tokens += n, logprobs += n) {
    const int32_t error = slm_step(engine, &b);
    if (error) return step ? step : error;
    int ended = 0;
    for (int32_t i = 0; i < n; i++) {
      tokens[i] = draw(&b, vocab, draws + i, i, step, logprobs + i);
      if (tokens[i] < 0) return step;
      ended |= ends(draws + i, tokens[i]);
    }
    if (ended || __atomic_load_n(halt, __ATOMIC_RELAXED)) return step + 1;
  }
  return steps;
}
