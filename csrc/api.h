/* Every struct and function that Python sees: plain declarations, read by the C compiler and by cffi alike. */

enum slm_error {
  SLM_OK = 0,
  SLM_E_MEMORY = -1,    /* the system gave no memory or no thread */
  SLM_E_CANCELLED = -2,
  SLM_E_ARGUMENT = -3,  /* a number is out of range; nothing was written */
  SLM_E_ISA = -4,       /* no instruction set of that name here */
  SLM_E_TYPE = -5,      /* no panels for this tensor type */
  SLM_E_NONFINITE = -6
};

/* Types of tensors, by the numbers of GGUF. */
enum slm_type {
  SLM_F32 = 0, SLM_F16 = 1, SLM_Q4_0 = 2, SLM_Q4_1 = 3, SLM_Q5_0 = 6, SLM_Q5_1 = 7, SLM_Q8_0 = 8,
  SLM_Q2_K = 10, SLM_Q3_K = 11, SLM_Q4_K = 12, SLM_Q5_K = 13, SLM_Q6_K = 14, SLM_IQ2_XXS = 16, SLM_IQ2_XS = 17,
  SLM_IQ3_XXS = 18, SLM_IQ1_S = 19, SLM_IQ4_NL = 20, SLM_IQ3_S = 21, SLM_IQ2_S = 22, SLM_IQ4_XS = 23, SLM_F64 = 28,
  SLM_IQ1_M = 29, SLM_BF16 = 30, SLM_TQ1_0 = 34, SLM_TQ2_0 = 35, SLM_MXFP4 = 39, SLM_NVFP4 = 40, SLM_Q1_0 = 41,
  SLM_Q2_0 = 42
};

/* Lowered operations. Rows are those of the step: its tokens, or (output = 1) the tokens whose logits are wanted. */
enum slm_kind {
  SLM_EMBED,   /* out = scale · row `id` of w, which stands as in the file */
  SLM_LOOKUP,  /* the same, of w in panels */
  SLM_POSITION, /* out = row position + `offset` of w, which stands as in the file and has k rows */
  SLM_NORM,    /* out = norm of each head of x (+ y) */
  SLM_PREPARE, /* act slot = x, or its norm: in int8 blocks or float32, as matmul wants it */
  SLM_MATMUL,  /* out = W act (+ bias), then the epilogue */
  SLM_ROPE,    /* out = x turned by position */
  SLM_STORE,   /* KV page = x (turned, if rope >= 0) and y */
  SLM_ATTEND,  /* out = softmax(scale · x Kᵀ) V, x turned first if rope >= 0; see window, softcap */
  SLM_GLU,     /* out = act(x) · y */
  SLM_ADD,     /* out = x + y */
  SLM_MAP,     /* out = softcap(act(scale · x)) */
  SLM_ROUTE,   /* out = of the `used` greatest of k values x: the softmax, then their numbers */
  SLM_GROUP,   /* rows by the experts that x, of a SLM_ROUTE, names: what the next ops with used > 0 go by */
  SLM_EXPERTS, /* as MATMUL, of each row's experts: `used` parts of n columns each; w: of all experts in turn */
  SLM_MIX,     /* out = sum of the `used` parts of x, each times its weight in y, of a SLM_ROUTE */
  SLM_GATHER   /* out = x at the wanted tokens */
};
/* What becomes of s = softcap(scale · (W act + bias)): act(s), s + y, or act(s) times the same of a second
   matrix, whose panels stand behind those of w in turn: the two are read as one stream */
enum slm_epilogue { SLM_PLAIN, SLM_RESIDUAL, SLM_GATED };
enum slm_act { SLM_AS_IS, SLM_SILU, SLM_GELU, SLM_RELU };

enum { SLM_NARROW = 8 }; /* a step of up to so many tokens has every thread prepare its own activations */

/* One lowered operation. Buffers are byte offsets into the workspace, rows `ld` floats apart; weights are byte offsets
   into the arena; -1 is none. */
typedef struct {
  int32_t kind, output, gather;  /* gather: x has a row per token, the op a row per output */
  int32_t barrier;               /* bit 0: wait before it in a narrow step, bit 1: in a wide one */
  int32_t type, type2;           /* of w and the second matrix */
  int32_t n, k;                  /* columns of out and of x */
  int32_t ldx, ldy, ldout;
  int32_t heads, kv_heads, dk, dv, rope;
  int32_t kv_type, window;       /* SLM_F16 or SLM_Q8_0; positions that a token sees, 0: all */
  int32_t epilogue, act_block;   /* act_block: 0 float32, else int8 with a scale per so many elements */
  int32_t act, center, offset;   /* center: the norm takes the mean off first */
  int32_t used, experts;         /* experts that a row takes, of how many; used > 0: the slot's rows go by SLM_GROUP */
  int32_t part;                  /* from one head's norm weights or one expert's x to the next, in floats; 0: the same */
  int32_t folded;                /* 1: a PREPARE of what the MATMUL before it makes, whose threads do it in a wide step */
  float eps, scale, softcap;     /* softcap: scores, or sums, become softcap · tanh(s / softcap); 0: they stay */
  int64_t x, y, out, w, bias, bias2, norm, norm_bias, kv; /* kv: offset of the layer in a KV page */
  int64_t act_narrow, act_wide;  /* the act slot: offset in a thread's scratch, and in the workspace */
} slm_op;

/* Rotation frequencies: `half` pairs, float64 at `frequency` in slm_program.frequencies. */
typedef struct {
  int32_t half, first;
  float magnitude;
} slm_rope;

/* A program without pointers into itself: the op list, and how much room a step takes. */
typedef struct {
  const slm_op *ops;
  const slm_rope *ropes;
  const double *frequencies;
  const uint8_t *arena;
  int32_t n_ops, n_ropes, n_frequencies, vocab, rows; /* rows: the most tokens in a step */
  int64_t workspace, scratch, page_bytes;             /* bytes: shared, per thread, per KV page */
} slm_program;

typedef struct {
  int32_t n_tokens, n_outputs, n_sequences;
  const int32_t *ids, *positions, *sequence; /* per token; a sequence's tokens stand together, positions ascending by 1 */
  const int32_t *outputs;                    /* the tokens whose logits are wanted, ascending */
  const int32_t *first_page;                 /* per sequence, and one more: where its pages start in `pages` */
  uint8_t *const *pages;
  float *logits;                             /* (n_outputs, vocab) */
  float *maxima;                             /* (n_outputs, up16(vocab) / 16): the largest of each 16 logits; or NULL */
  uint8_t *bad;                              /* per token: 1 where a value was no finite number */
  const int32_t *cancel;                     /* the step ends soon after this becomes nonzero */
} slm_batch;

typedef struct slm_engine slm_engine;

/* Threads that walk `program` together, on instruction set `isa` (NULL: the best here). The program's memory must
   outlive the engine. NULL on error, with the code in *error. */
slm_engine *slm_engine_new(const slm_program *program, const char *isa, int32_t threads, int32_t *error);
void slm_engine_free(slm_engine *engine);
int32_t slm_step(slm_engine *engine, const slm_batch *batch);
const char *slm_engine_isa(const slm_engine *engine);
/* The values of the last step, at the offsets that the ops name, as far as none has taken another's place. */
const uint8_t *slm_engine_workspace(const slm_engine *engine);

/* Name of the i-th instruction set of this build, best first, NULL past the last; whether this CPU has it. */
const char *slm_isa_name(int32_t i);
int32_t slm_isa_here(int32_t i);

/* Panels. slm_panel_bytes: of one panel of 16 rows, 0 for a type without panels. slm_pack: `panels` panels from rows
   of `k` elements; panel p takes rows[16p] … rows[16p + 15] of `source`, -1 for a row of zeros. slm_unpack: row `row`
   of a packed matrix, to float32. slm_dequantise: the same, of one row as it stands in the file. */
int64_t slm_panel_bytes(int32_t type, int32_t k);
int64_t slm_row_bytes(int32_t type, int32_t k);
int32_t slm_act_block(int32_t type);
int32_t slm_pack(int32_t type, int32_t k, const uint8_t *source, const int32_t *rows, int32_t panels, uint8_t *target);
int32_t slm_unpack(int32_t type, int32_t k, const uint8_t *packed, int64_t row, float *target);
int32_t slm_dequantise(int32_t type, int32_t k, const uint8_t *source, float *target);

/* `rows` rows of `k` float32 to blocks of a quantised type other than Q8_0, the scales searched for; on instruction set
   `isa` (NULL: the best here), with the same bits on each. `importance`: how much each column counts, k floats, not
   negative; NULL: alike. SLM_E_TYPE, SLM_E_ISA, SLM_E_ARGUMENT for a length that the type's blocks do not divide,
   SLM_E_NONFINITE: a weight is no finite number, or a scale is beyond f16. */
int32_t slm_quantise(const char *isa, int32_t type, int64_t rows, int32_t k, const float *source, const float *importance, uint8_t *target);

/* Bytes of the keys or the values, `n` elements wide, of one head in a KV page of type SLM_F16 or SLM_Q8_0; 0 for another.
   `fill`: n is filled up to 16, as it is in q8_0 and in the values of f16. */
int64_t slm_kv_bytes(int32_t type, int32_t n, int32_t fill);

/* Bytes of one row of an act slot. */
int64_t slm_act_row_bytes(int32_t act_block, int32_t k);

/* A weight to be loaded: n rows of k elements, from byte `offset` of an open file. panels: as slm_pack makes them, `step`
   bytes from one to the next, row i from row order[i] (NULL: i), which stands in the same `unit` rows, a multiple of 16;
   else as they stand in the file. */
typedef struct {
  int32_t file, type, k, n, unit, panels;
  int64_t offset, step;
  const int32_t *order;
  uint8_t *target;
} slm_source;
/* `next` and `done`, the bytes loaded, begin at 0, `failed` at -1. Who sets `stop` ends it soon. If the file could not be
   read: which source that was, from where on, and errno, 0 if the file ended there. */
typedef struct {
  const slm_source *sources;
  int32_t count, stop, failed, error;
  int64_t next, done, offset;
} slm_loading;
/* Any number of threads call it together, and each takes slices until none is left. SLM_OK, SLM_E_MEMORY. */
int32_t slm_load(slm_loading *loading);

/* Memory from the system, zeroed, aligned to 64 bytes at least; on huge pages where that helps, unless the environment has
   TINYSLM_HUGE_PAGES=0. */
void *slm_alloc(int64_t bytes);
void slm_free(void *memory, int64_t bytes);

/* The machine's limits, as `threads` threads on instruction set `isa` (NULL: the best) find them: reading `bytes` bytes of
   memory, and dot products of 8-bit integers. NULL: no memory, no thread, or no such instruction set. */
typedef struct slm_probe slm_probe;
slm_probe *slm_probe_new(const char *isa, int32_t threads, int64_t bytes);
void slm_probe_run(slm_probe *probe, double *bytes_per_second, double *ops_per_second);
void slm_probe_free(slm_probe *probe);

/* ---- sampling ---- */

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
   maxima   NULL, or the largest of each 16 logits, of which then none is NaN or +inf: saves reading all of them
   index    number of the token in its request: (seed, index) names the random number
   recent   the window that the penalties look at, at most the last repeat_last_n tokens of prompt and answer
   bias     bias[i] is added to the logit of bias_ids[i]; repeated ids add up; -inf bans, +inf and NaN are refused
   mask     bit id % 32 of word id / 32 allows token id; NULL allows all
   logprob  NULL, or receives the natural log probability of the drawn token under the raw logits at temperature 1,
            before bias, mask, penalties and truncation; asking for it costs an exp for each token of the vocabulary
   n_top    0, or how many of the most likely tokens (same distribution) go to top_ids and top_logprobs, most likely
            first, equal ones by id; when fewer have a finite logit the rest is id -1, log probability -inf
   scratch  slm_sample_scratch(n_vocab) bytes, 64-byte aligned, contents of no meaning before or after */
int32_t slm_sample(const float *logits, const float *maxima, int32_t n_vocab, const slm_sampler *s, uint64_t index,
                   const int32_t *recent, int32_t n_recent, const int32_t *bias_ids, const float *bias, int32_t n_bias,
                   const uint32_t *mask, float *logprob, int32_t n_top, int32_t *top_ids, float *top_logprobs,
                   void *scratch);

/* How one sequence's next tokens are drawn: the arguments of slm_sample for its first one. */
typedef struct {
  const slm_sampler *sampler;
  uint64_t index;
  int32_t *recent;          /* n_recent tokens, and room for those to come */
  int32_t n_recent, last;   /* last: how many the penalties look back at */
  const int32_t *bias_ids;
  const float *bias;
  const int32_t *ends;      /* tokens that end the answer */
  int32_t n_bias, n_ends;
  int32_t logprob;          /* whether log probabilities are wanted */
  void *scratch;
} slm_draw;

/* Up to `steps` steps, each over the tokens drawn after the one before; the last ones drawn are not stepped.

   batch     one token of each sequence, with its logits and maxima; the pages have room for `steps` positions;
             positions: (steps, n_sequences)
   tokens    (steps, n_sequences), and logprobs, receive what was drawn
   halt      no further step is begun after this becomes nonzero

   Returns the number of steps of which all was drawn: fewer than `steps` after one that drew an end or met `halt`, or
   before one that failed, was cancelled (the cancel is still to be answered) or cannot be drawn from; the caller's own step
   will tell why. Or slm_step's error in the first one; the pages' positions of it are then undefined. */
int32_t slm_burst(slm_engine *engine, const slm_batch *batch, int32_t vocab, slm_draw *draws, int32_t steps,
                  const int32_t *halt, int32_t *tokens, float *logprobs);
