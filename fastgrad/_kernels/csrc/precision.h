/* What the precision of a translation unit (FG_DOUBLE) stands for. */
#if FG_DOUBLE
typedef double T;
typedef int64_t I;
#define MANTISSA 52
#define FG_SUFFIX FG_JOIN2(f64, FG_ISA)
#else
typedef float T;
typedef int32_t I;
#define MANTISSA 23
#define FG_SUFFIX FG_JOIN2(f32, FG_ISA)
#endif
#define FG_NAME(kernel) FG_JOIN2(kernel, FG_SUFFIX) /* softmax_rows -> softmax_rows_f32_avx2 */

/* Where rows begin, or their class c: listed, or `step` bytes apart. */
typedef struct {
  char *const *listed; /* or NULL */
  char *first;
  ptrdiff_t step, c;
  const ptrdiff_t *size; /* elements of each row, or NULL if there are as many as are wanted */
} Starts;
FG_INLINE T *start_of(Starts rows, int k) {
  return (T *)(rows.listed ? rows.listed[k] : rows.first + k * rows.step) + rows.c;
}
/* How many of n elements row k has. */
FG_INLINE ptrdiff_t rest_of(Starts rows, int k, ptrdiff_t n) {
  if (!rows.size) return n;
  const ptrdiff_t rest = rows.size[k] < rows.c ? 0 : rows.size[k] - rows.c;
  return rest < n ? rest : n;
}
FG_INLINE Starts starts_ragged(const void *listed, const ptrdiff_t *size, ptrdiff_t c) {
  return (Starts){(char *const *)listed, NULL, 0, c, size};
}
FG_INLINE Starts starts_listed(const void *listed, ptrdiff_t c) { return starts_ragged(listed, NULL, c); }
FG_INLINE Starts starts_apart(const void *first, ptrdiff_t step, ptrdiff_t c) {
  return (Starts){NULL, (char *)first, step, c, NULL};
}
/* The same from class c on.  Where that is cannot be computed beforehand, or GCC keeps a pointer to every row. */
FG_INLINE Starts starts_from(Starts rows, ptrdiff_t c) {
  if (rows.listed) return starts_ragged(rows.listed, rows.size, rows.c + c);
  char *first = rows.first + c * (ptrdiff_t)sizeof(T);
  FG_OPAQUE(first);
  return starts_apart(first, rows.step, rows.c);
}
