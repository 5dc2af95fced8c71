"""The compiled layer: what lies where.

A call goes from Python (checks) to Cython (rows, blocks, threads) to C (one run of rows, vectors).

isa             which instruction set is active; owns the C tables
rows            the driver: layouts, blocks, threads, slabs; no mathematics
softmax         softmax, log_softmax, logsumexp and their derivatives
cross_entropy   the loss, its gradient, the scan of targets
binary          sigmoid, log_sigmoid and binary cross-entropy, element by element
segments        sorting rows by segment, and reductions over segments
centroids       kernels that take a whole segment: the centroid hinge, moments, prototypes
hinge           the hinge losses, of one score and of classes
bandwidth       copies and reads with nothing computed: the limit that benchmarks/ measures against
stats           what language models are evaluated by: a record for every row
csrc/           the C kernels: fastgrad.h is their contract, kernels.inc.h their spine

Nothing here judges or raises for bad input: it scans and reports, and `fastgrad._arrays` decides.
"""
