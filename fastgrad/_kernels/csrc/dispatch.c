/* Which instruction sets this machine can run: CPUID says what the processor has, XGETBV what the
 * operating system saves on a task switch.  Both are needed. */
#include "fastgrad.h"

#if FG_X86
#include <cpuid.h>

static uint64_t saved_state(void) {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return ((uint64_t)high << 32) | low;
}

static int has_bits(uint64_t word, uint64_t bits) { return (word & bits) == bits; }

static void detect(int *avx2, int *avx512) {
  const unsigned FMA = 1u << 12, OSXSAVE = 1u << 27, AVX = 1u << 28, F16C = 1u << 29;       /* 1, ECX */
  const unsigned AVX2 = 1u << 5, F = 1u << 16, DQ = 1u << 17, BW = 1u << 30, VL = 1u << 31; /* 7, EBX */
  const uint64_t YMM = 0x6, ZMM = 0xe6;
  unsigned a, b, c, d;
  *avx2 = *avx512 = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !has_bits(c, FMA | OSXSAVE | AVX | F16C)) return;
  const uint64_t state = saved_state();
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
  *avx2 = has_bits(b, AVX2) && has_bits(state, YMM);
  *avx512 = *avx2 && has_bits(b, F | DQ | BW | VL) && has_bits(state, ZMM);
}

/* Found on Zen 5 and on Intel's Xeons (benchmarks/NOTES.md): on the one 2 KiB take from memory up to twice the time of
 * 8 KiB, on the other 8 KiB a third more than 2. */
static int made_by_amd(void) {
  unsigned a, b, c, d;
  return __get_cpuid(0, &a, &b, &c, &d) && b == signature_AMD_ebx && c == signature_AMD_ecx && d == signature_AMD_edx;
}
#endif

ptrdiff_t fg_ahead = 2048;

int fg_available(const fg_table *tables[3]) {
  static const fg_table baseline = {"baseline", &fg_f32_baseline, &fg_f64_baseline};
  int n = 0;
  tables[n++] = &baseline;
#if FG_X86
  static const fg_table avx2 = {"avx2", &fg_f32_avx2, &fg_f64_avx2};
  static const fg_table avx512 = {"avx512", &fg_f32_avx512, &fg_f64_avx512};
  int has_avx2, has_avx512;
  detect(&has_avx2, &has_avx512);
  if (made_by_amd()) fg_ahead = 8192;
  if (has_avx2) tables[n++] = &avx2;
  if (has_avx512) tables[n++] = &avx512;
#endif
  return n;
}
