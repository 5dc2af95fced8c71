from libc.stdint cimport int32_t, int64_t

cdef extern from "fastgrad.h" nogil:
    ctypedef struct fg_run:
        Py_ssize_t rows, classes
        const char *x
        Py_ssize_t x_row, x_class
        char *out
        Py_ssize_t out_row, out_class
        const char *g
        Py_ssize_t g_row, g_class
        const char *v
        Py_ssize_t v_row, v_class
        const char *where
        Py_ssize_t where_row, where_class
        const char *weight
        Py_ssize_t weight_row, weight_class
        char *value
        Py_ssize_t value_row
        char *sign
        Py_ssize_t sign_row
        const char *alpha
        Py_ssize_t alpha_row
        const char *beta
        Py_ssize_t beta_row
        const int64_t *target
        double scale
        double smoothing
        double z_loss
        double margin
        int squared
        int per_class
        double log2e[2]
        double inv_temperature
        void *scratch
        int stream
        int half
    ctypedef void (*fg_kernel)(const fg_run *) noexcept nogil
    ctypedef void (*fg_elementwise)(const void *, void *, Py_ssize_t) noexcept nogil
    enum:
        FG_NATIVE
        FG_FLOAT16
        FG_BFLOAT16
        FG_KINDS
        FG_ROWS
        FG_LANES
        FG_BLOCKS
        FG_SOFTMAX
        FG_LOG_SOFTMAX
        FG_LOGSUMEXP
        FG_LOGSUMEXP_WEIGHTED
        FG_CROSS_ENTROPY
        FG_CROSS_ENTROPY_GRAD
        FG_MASS
        FG_MASS_GRAD
        FG_MASS_HVP
        FG_MASS_HESS_DIAG
        FG_MASS_SOFT
        FG_MASS_SOFT_GRAD
        FG_MASS_SOFT_HVP
        FG_MASS_SOFT_HESS_DIAG
        FG_ROW_WEIGHT
        FG_PULL_SOFTMAX
        FG_PULL_LOG_SOFTMAX
        FG_PUSH_LOG_SOFTMAX
        FG_PUSH_LOGSUMEXP
        FG_SIGMOID
        FG_LOG_SIGMOID
        FG_PULL_SIGMOID
        FG_PULL_SIGMOID_OF
        FG_PULL_LOG_SIGMOID
        FG_BINARY
        FG_BINARY_GRAD
        FG_BINARY_HESS
        FG_TOKEN_STATS
        FG_HINGE
        FG_HINGE_GRAD
        FG_HINGE_HESS
        FG_CRAMMER_SINGER
        FG_CRAMMER_SINGER_GRAD
        FG_CRAMMER_SINGER_HVP
        FG_CRAMMER_SINGER_HESS_DIAG
        FG_WESTON_WATKINS
        FG_WESTON_WATKINS_GRAD
        FG_WESTON_WATKINS_HVP
        FG_WESTON_WATKINS_HESS_DIAG
        FG_KERNELS
        FG_BLOCKS_MAX_BYTES
        FG_LANES_MAX_CONTIGUOUS
        FG_LANES_MAX
    ctypedef struct fg_segments:
        Py_ssize_t rows, columns
        const char *x
        Py_ssize_t x_row
        char *out
        Py_ssize_t out_row
        const int64_t *code
        const int32_t *taken
        const int64_t *order
        const int64_t *offsets
        int64_t base
        const void *weight
        const double *total
        double *table
        Py_ssize_t pitch
        double empty, even
        int mean
    ctypedef struct fg_lines:
        Py_ssize_t lines
        const char *ahead
        const char *place
        const char **x
        const char **g
        char **out
        const Py_ssize_t *size
    ctypedef struct fg_rows:
        char *data
        Py_ssize_t row
        int kind
        const char *next
    ctypedef struct fg_segment:
        Py_ssize_t count, features
        const int64_t *order
        int64_t first
        fg_rows x, v, out
        const char *weight
        double margin, scale
        int squared, moving
        int (*ends)(void *watch, Py_ssize_t elements) noexcept nogil
        void *watch
        double value
        double total[2]
        double *sum[2]
        double *squares
        void *scratch
    ctypedef struct fg_pairs:
        Py_ssize_t rows, features, classes
        const void *x
        const void *c
        const void *x_squares
        const void *c_squares
        const char *absent
        void *out
    ctypedef void (*fg_segment_kernel)(fg_segment *) noexcept nogil
    ctypedef struct fg_precision:
        fg_kernel kernel[FG_KINDS][FG_KERNELS][3]
        fg_elementwise exp2, log, log1p
        Py_ssize_t blocks_above
        Py_ssize_t (*scratch_bytes)(Py_ssize_t, int, int) noexcept nogil
        void (*total)(const void *, Py_ssize_t, double *) noexcept nogil
        Py_ssize_t (*count_outside)(const int64_t *, Py_ssize_t, int64_t) noexcept nogil
        Py_ssize_t (*count_unfit)(const void *, Py_ssize_t, double) noexcept nogil
        void (*widen)(
            int kind, const char *src, Py_ssize_t line, Py_ssize_t step, Py_ssize_t lines,
            Py_ssize_t n, float *to, Py_ssize_t pitch
        ) noexcept nogil
        void (*narrow)(
            int kind, const float *src, Py_ssize_t pitch, char *to, Py_ssize_t line,
            Py_ssize_t step, Py_ssize_t lines, Py_ssize_t n, int stream
        ) noexcept nogil
        void (*segment_add)(const fg_segments *) noexcept nogil
        void (*segment_merge)(const fg_segments *, Py_ssize_t, const double *) noexcept nogil
        int (*segment_finish)(const fg_segments *, Py_ssize_t, Py_ssize_t) noexcept nogil
        int (*segment_gather)(const fg_segments *, Py_ssize_t, Py_ssize_t) noexcept nogil
        void (*segment_spread)(const fg_segments *) noexcept nogil
        void (*segment_extreme)(
            const fg_segments *, int least, Py_ssize_t begin, Py_ssize_t end, int packed, int start,
            void *best, int64_t *place
        ) noexcept nogil
        void (*listed[FG_KERNELS][3])(const fg_run *, const fg_lines *) noexcept nogil
        Py_ssize_t (*segment_scratch)(Py_ssize_t, Py_ssize_t) noexcept nogil
        fg_segment_kernel centroid_hinge, centroid_hinge_hvp, class_moments
        fg_segment_kernel leave_one_out, leave_one_out_pull
        void (*row_squares)(const void *, Py_ssize_t, Py_ssize_t, void *) noexcept nogil
        void (*prototype_logits)(const fg_pairs *) noexcept nogil
        void (*fence)() noexcept nogil
    ctypedef struct fg_table:
        const char *name
        const fg_precision *f32
        const fg_precision *f64
    int fg_available(const fg_table **)

cdef const fg_table *active() noexcept nogil
