/* The OpenMP calls we need, and what they mean in a build without it. */
#ifndef FG_THREADS_H
#define FG_THREADS_H
#ifdef _OPENMP
#include <omp.h>
static inline int fg_openmp(void) { return _OPENMP; }
static inline int fg_max_threads(void) { return omp_get_max_threads(); }
static inline int fg_thread(void) { return omp_get_thread_num(); }     /* 0 is the one that called */
static inline void fg_limit_threads(int n) { omp_set_num_threads(n); } /* of the calling thread's regions */
#else
static inline int fg_openmp(void) { return 0; }
static inline int fg_max_threads(void) { return 1; }
static inline int fg_thread(void) { return 0; }
static inline void fg_limit_threads(int n) { (void)n; }
#endif

/* Whether this is the last of `left` callers, which then sees what all the others have written. */
static inline int fg_last(int *left) { return __atomic_sub_fetch(left, 1, __ATOMIC_ACQ_REL) == 0; }

/* Zeros for a table that is visited at random: accumulators that lie across cache lines would need two for one, and
 * large pages miss the TLB less and fault once. */
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#define FG_HUGE ((size_t)2 << 20)
static inline void *fg_table_of(size_t bytes) {
#if defined(_WIN32)
  return calloc(bytes ? bytes : 1, 1);
#else
  void *table = NULL;
  const int large = bytes >= FG_HUGE;
  const size_t all = large ? (bytes + FG_HUGE - 1) & ~(FG_HUGE - 1) : bytes + 1;
  if (posix_memalign(&table, large ? FG_HUGE : 64, all)) return NULL;
#if defined(MADV_HUGEPAGE)
  if (large) madvise(table, all, MADV_HUGEPAGE); /* where it is refused, pages are small */
#endif
  return memset(table, 0, bytes);
#endif
}
static inline void fg_table_free(void *table) { free(table); } /* not PyMem_RawFree, which may be another heap */

static inline const char *fg_compiler(void) {
#if defined(__clang__)
  return "Clang " __clang_version__;
#else
  return "GCC " __VERSION__;
#endif
}
#endif
