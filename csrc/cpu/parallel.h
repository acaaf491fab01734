// Threads, and one function compiled for several instruction sets.
#pragma once
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

// Run-time dispatch: the compiler emits the function once per instruction set and the loader picks
// the best one the machine has. Elsewhere the plain version is all there is. Sanitizers instrument
// the resolver before they are initialised, so their builds take the plain version too.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__) && \
    !defined(INFODISENT_NO_DISPATCH)
#define INFODISENT_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define INFODISENT_DISPATCH "AVX-512, AVX2 or plain, chosen at load"
#else
#define INFODISENT_CLONES
#define INFODISENT_DISPATCH "as compiled"
#endif

// Number of the calling thread in its team.
inline int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

#define INFODISENT_INLINE inline __attribute__((always_inline))
