/* The OpenMP calls we need, and what they mean in a build without it. */
#ifndef FG_THREADS_H
#define FG_THREADS_H
#ifdef _OPENMP
#include <omp.h>
static inline int fg_openmp(void) { return _OPENMP; }
static inline int fg_max_threads(void) { return omp_get_max_threads(); }
#else
static inline int fg_openmp(void) { return 0; }
static inline int fg_max_threads(void) { return 1; }
#endif
static inline const char *fg_compiler(void) {
#if defined(__clang__)
  return "Clang " __clang_version__;
#else
  return "GCC " __VERSION__;
#endif
}
#endif
