// One source, several instruction sets: the loader picks the widest the processor has, so a wheel
// built anywhere uses AVX2 or AVX-512 where they exist. What is cloned must be inlined into the
// clone, or it stays compiled for the narrowest set.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define EXPERTSTEER_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EXPERTSTEER_CLONES
#endif

#ifdef __GNUC__
#define EXPERTSTEER_INLINE inline __attribute__((always_inline))
#else
#define EXPERTSTEER_INLINE inline
#endif
