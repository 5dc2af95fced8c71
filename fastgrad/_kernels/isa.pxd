from libc.stdint cimport int64_t

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
        FG_KERNELS
        FG_LANES_MAX_SOFTMAX
        FG_LANES_MAX_CONTIGUOUS
        FG_LANES_MAX
    ctypedef struct fg_precision:
        fg_kernel kernel[FG_KINDS][FG_KERNELS][2]
        fg_elementwise exp2, log, log1p
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
        void (*fence)() noexcept nogil
    ctypedef struct fg_table:
        const char *name
        const fg_precision *f32
        const fg_precision *f64
    int fg_available(const fg_table **)

cdef const fg_table *active() noexcept nogil
