/* Compiler and machine facts.  Included first by every C file, outside any target region.
 *
 * How one text serves several instruction sets: a file isa_<name>_<precision>.c opens a compiler
 * *target region*, includes one vec_*.h and then kernels.inc.h.  No file is compiled with -mavx2 or
 * the like, so nothing outside a region can hold an instruction that the machine may lack.
 *
 * Traps:
 *  - Key on FG_ISA_* (ours), never on __AVX2__ or __FMA__: GCC defines those inside a region, Clang
 *    does not.
 *  - System headers come before the region, or their inline functions would get its attribute.
 *  - Clang ignores `#pragma GCC target`, GCC knows no `#pragma clang attribute`: two spellings.
 *  - A helper that is always inlined must live inside the region of its caller.
 */
#ifndef FG_PLATFORM_H
#define FG_PLATFORM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if !defined(__GNUC__)
#error "fastgrad needs GCC or Clang: the kernels use their vector types (on Windows, use clang or mingw)"
#endif

#if defined(__x86_64__) || defined(__i386__)
#define FG_X86 1
#include <immintrin.h>
#else
#define FG_X86 0
#endif

#define FG_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define FG_TARGET_BEGIN(isa) FG_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define FG_TARGET_END FG_PRAGMA(clang attribute pop)
#else
#define FG_TARGET_BEGIN(isa) FG_PRAGMA(GCC push_options) FG_PRAGMA(GCC target(isa))
#define FG_TARGET_END FG_PRAGMA(GCC pop_options)
#endif

/* Verbs vanish into their kernels; a kernel keeps its own name, so that a profiler and the
 * disassembly test see which instruction set a symbol belongs to. */
#define FG_INLINE static inline __attribute__((always_inline, unused))
#if defined(__clang__)
#define FG_KERNEL static __attribute__((noinline))
#else
#define FG_KERNEL static __attribute__((noinline, noclone))
#endif

#define FG_HIDDEN __attribute__((visibility("hidden")))
#define FG_LIKELY(x) __builtin_expect(!!(x), 1)
#define FG_UNLIKELY(x) __builtin_expect(!!(x), 0)
/* A short loop with a constant end, unrolled so that its arrays become registers. */
#define FG_UNROLL(k, n, step) _Pragma("GCC unroll 8") for (int k = 0; k < (n); k += (step))
/* No load or store is moved across. */
#define FG_BARRIER __asm__ volatile("" ::: "memory")
/* The compiler forgets where a pointer comes from, and computes what hangs on it where it is wanted. */
#define FG_OPAQUE(p) __asm__("" : "+r"(p))
#define FG_PREFETCH(p) __builtin_prefetch((p), 0, 3)
#define FG_PREFETCH_L2(p) __builtin_prefetch((p), 0, 2)
#define FG_PREFETCH_WRITE(p) __builtin_prefetch((p), 1, 3)

#define FG_JOIN2_(a, b) a##_##b
#define FG_JOIN2(a, b) FG_JOIN2_(a, b)
#define FG_JOIN3_(a, b, c) a##_##b##_##c
#define FG_JOIN3(a, b, c) FG_JOIN3_(a, b, c)

#endif
