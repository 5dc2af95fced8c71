/* The limit of the machine: one pass of one thread over memory, for every instruction set. */
#ifndef FG_BANDWIDTH_H
#define FG_BANDWIDTH_H

#include "platform.h"

#define PAGE 4096 /* of the memory; what is copied need not begin at one */

/* n bytes; returns what `read` makes of them, else 0.  `read` has no `to`. */
typedef uint8_t (*fg_pass)(uint8_t *to, const uint8_t *from, ptrdiff_t n);
typedef struct {
  fg_pass copy;         /* ordinary stores, which read the lines that they write */
  fg_pass stream;       /* stores past the caches where the instruction set has them, else ordinary ones */
  fg_pass stream_pages; /* the same, several pages in turns */
  fg_pass read;
} fg_passes;

#define FG_NAME(name) FG_JOIN2(name, baseline)
#define VECTOR 16
#if FG_X86
#define STREAM(to, v) _mm_stream_si128((__m128i *)(to), (__m128i)(v))
#else
#define STREAM(to, v) (*(FG_NAME(bytes) *)(to) = (v))
#endif
#include "bandwidth.inc.h"

#if FG_X86
FG_TARGET_BEGIN("avx2")
#define FG_NAME(name) FG_JOIN2(name, avx2)
#define VECTOR 32
#define STREAM(to, v) _mm256_stream_si256((__m256i *)(to), (__m256i)(v))
#include "bandwidth.inc.h"
FG_TARGET_END

FG_TARGET_BEGIN("avx512f")
#define FG_NAME(name) FG_JOIN2(name, avx512)
#define VECTOR 64
#define STREAM(to, v) _mm512_stream_si512((__m512i *)(to), (__m512i)(v))
#include "bandwidth.inc.h"
FG_TARGET_END
#endif

#undef PAGE

static inline const fg_passes *fg_passes_of(const char *isa) {
#if FG_X86
  if (!strcmp(isa, "avx512")) return &fg_passes_avx512;
  if (!strcmp(isa, "avx2")) return &fg_passes_avx2;
#endif
  (void)isa;
  return &fg_passes_baseline;
}
#endif
