/* The OpenMP calls we need, and what they mean in a build without it. */
#ifndef FG_THREADS_H
#define FG_THREADS_H
#ifdef _OPENMP
#include <omp.h>
static inline int fg_openmp(void) { return _OPENMP; }
static inline int fg_max_threads(void) { return omp_get_max_threads(); }
static inline int fg_thread(void) { return omp_get_thread_num(); } /* 0 is the one that called */
#else
static inline int fg_openmp(void) { return 0; }
static inline int fg_max_threads(void) { return 1; }
static inline int fg_thread(void) { return 0; }
#endif

/* Zeros for a table that is visited at random: in large pages, which miss the TLB less and fault once. */
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif
static inline void *fg_table_of(size_t bytes) {
  void *table = NULL;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const size_t huge = (size_t)2 << 20;
  if (bytes >= huge) {
    const size_t all = (bytes + huge - 1) & ~(huge - 1);
    if (posix_memalign(&table, huge, all)) return NULL;
    madvise(table, all, MADV_HUGEPAGE); /* where it is refused, pages are small */
    memset(table, 0, bytes);
    return table;
  }
#endif
  table = calloc(bytes ? bytes : 1, 1);
  return table;
}
static inline const char *fg_compiler(void) {
#if defined(__clang__)
  return "Clang " __clang_version__;
#else
  return "GCC " __VERSION__;
#endif
}
#endif
