cimport numpy as cnp


cdef bint is_plain(logits, target)
cdef cnp.ndarray plain_out(cnp.ndarray z, cnp.ndarray y, out)
