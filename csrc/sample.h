#ifndef SLM_SAMPLE_H
#define SLM_SAMPLE_H

#include <stddef.h>
#include <stdint.h>

enum { SLM_E_ARGUMENT = -3, SLM_E_NONFINITE = -6 };

/* Below this line only plain declarations, which cffi reads as they are. */

/* What shapes the draw; the order of the steps is the one of slm_sample. Neutral: 1 for top_p, typical_p and
   repeat_penalty, 0 for min_p, top_k and the other penalties. temperature <= 0 takes the most likely token. */
typedef struct {
    float temperature, top_p, min_p, typical_p;
    float repeat_penalty, frequency_penalty, presence_penalty;
    int32_t top_k;
    uint64_t seed;
} slm_sampler;

/* Bytes of scratch that slm_sample needs for n_vocab logits; 0 when n_vocab is not in 1 .. 2^22. */
size_t slm_sample_scratch(int32_t n_vocab);

/* Draws one token: bias, mask, penalties, top-k, typical-p, top-p, min-p, temperature, draw.
   Returns the id >= 0, or SLM_E_ARGUMENT (a null or unaligned pointer, a count or id out of range, a parameter outside
   its range: temperature and penalties finite, repeat_penalty > 0, top_p and typical_p >= 0, min_p <= 1, none NaN), or
   SLM_E_NONFINITE (a logit is NaN or +inf, also one that became so by bias or penalties, or no allowed token has a
   finite logit; -inf is a banned token).

   logits   n_vocab floats, not modified
   index    number of the token in its request: (seed, index) names the random number
   recent   the window that the penalties look at, at most the last repeat_last_n tokens of prompt and answer
   bias     bias[i] is added to the logit of bias_ids[i]; repeated ids add up; -inf bans, +inf and NaN are refused
   mask     bit id % 32 of word id / 32 allows token id; NULL allows all
   logprob  NULL, or receives the natural log probability of the drawn token under the raw logits at temperature 1,
            before bias, mask, penalties and truncation; asking for it costs an exp for each token of the vocabulary
   n_top    0, or how many of the most likely tokens (same distribution) go to top_ids and top_logprobs, most likely
            first, equal ones by id; when fewer have a finite logit the rest is id -1, log probability -inf
   scratch  slm_sample_scratch(n_vocab) bytes, 64-byte aligned, contents of no meaning before or after */
int32_t slm_sample(const float *logits, int32_t n_vocab, const slm_sampler *s, uint64_t index, const int32_t *recent,
                   int32_t n_recent, const int32_t *bias_ids, const float *bias, int32_t n_bias, const uint32_t *mask,
                   float *logprob, int32_t n_top, int32_t *top_ids, float *top_logprobs, void *scratch);

/* Above this line only plain declarations. */

#endif
