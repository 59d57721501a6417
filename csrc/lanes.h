/* The vocabulary of the 16-lane machine, in which tiles.inc, matmul.inc, rows.inc and attention.inc are written once. Each
   isa/<isa>.c defines it and then includes the bodies. A lane is a row of a panel, a position of a KV page or an
   element of a row; every function below acts lane by lane, rounds to nearest even, and gives the same bits everywhere.

   vf                          16 float32
   vf_zero() vf_set(x) vf_load(p) vf_store(p, v)
   vf_loadn(p, n) vf_storen(p, v, n)   the first n lanes, 0 ≤ n ≤ 16; the others read as 0 and are not written
   vf_f16(p) vf_bf16(p)        16 of these, widened;  vf_to_f16(p, v) narrowed, to nearest even
   vf_add sub mul div max;  vf_fma(a, b, c) = a·b + c, rounded once
   vf_first(v, n, other)       the first n lanes of v, the others of `other` (a float)
   vf_sum(v) vf_top(v)         ((i, i+8), (i, i+4), (i, i+2), (i, i+1)): the one tree in which lanes meet

   vi                          16 int32
   vi_set(x) vi_i8(p)          16 int8 widened;  vi_add vi_mul vi_max;  vi_shl(v, constant)
   vi_round(v) float → int, to nearest even;  vf_cvt(v) int → float;  vi_bits(v) vf_bits(v) reinterpret
   vi_abs_bits(v)              float bits without the sign
   vi_sum(v) vi_top(v)         exact, so in any order;  vi_to_i8(p, v) the low bytes
   vi_to_i8_four(p, v)         of 4 vectors of int8's range: 4 lanes' of each in turn
   vi_sums(v) vi_tops(v)       of 16 vectors, one in each lane

   vw                          64 bytes: 16 rows × 4 codes
   vw_store(p, w)
   vw_load(p) vw_code8(p)      as they are; codes of 8 bits, in the form that the dot product wants
   vi_byte(w) vw_next(w)       the first byte of each lane's 4, as int32; all of them one place down
   vw_and(v, byte) vw_or(a, b) vw_shl(v, constant) vw_shr(v, constant)     shifts may cross bytes: mask after them
   vw_look(t, v)               byte v (0 … 15) of t, whose 16 bytes stand in it four times
   va                          16 running sums of dot products
   va_begin(c) va_dot(s, w, a, bits) va_end(s, c)
                               c + Σ (4 codes of `bits` bits) · (4 int8 at a, the same for all rows), exactly; a is
                               ±127. At most fold_steps(bits) dots between begin and end.
   CODE8_SHIFT                 7 where codes of 8 bits are taken as unsigned, offset by 128; -1 where as signed */
#ifndef SLM_LANES_H
#define SLM_LANES_H

#define IN static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define ROLLED _Pragma("GCC unroll 1")
#if defined(__clang__)
#define SLM_PRAGMA(x) _Pragma(#x)
#define TARGET_BEGIN(isa) SLM_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define TARGET_END _Pragma("clang attribute pop")
#else
#define SLM_PRAGMA(x) _Pragma(#x)
#define TARGET_BEGIN(isa) _Pragma("GCC push_options") SLM_PRAGMA(GCC target(isa))
#define TARGET_END _Pragma("GCC pop_options")
#endif

/* Fetches `bytes` bytes, a multiple of 64, of a stream that is read at p: as far ahead and as near to the core as its maker
   needs it. A Zen 5 core that reads 45 GB/s has enough on its way with 8 KB (with 4 KB Q6_K comes at 80% of that, with 8 KB
   at 95%), and decodes 1 to 3% faster where lines do not stay in its outer caches (hint 0). To Intel's servers that hint is
   poison: it goes past the second-level cache, whose queue is what holds many lines (two cores of a Xeon 6 read 12 GB/s with
   it, 31 with no hint, 36 to 38 with all levels 1 to 2 KB ahead). */
#define FETCH_AHEAD(p, bytes)                                                                       \
  do {                                                                                              \
    const uint8_t *at_ = (const uint8_t *)(p);                                                      \
    if (FETCH_FAR) UNROLL for (int i_ = 0; i_ < (bytes); i_ += 64) __builtin_prefetch(at_ + 8192 + i_, 0, 0); \
    else UNROLL for (int i_ = 0; i_ < (bytes); i_ += 64) __builtin_prefetch(at_ + 2048 + i_, 0, 3); \
  } while (0)

/* vi_sums and vi_tops where the ISA has nothing better. */
#define EACH_FOLDED(name, fold)                                                                     \
  IN vi name(const vi *v) {                                                                         \
    int32_t lanes[16];                                                                              \
    vi all;                                                                                         \
    for (int i = 0; i < 16; i++) lanes[i] = fold(v[i]);                                             \
    memcpy(&all, lanes, sizeof all);                                                                \
    return all;                                                                                     \
  }

#endif
