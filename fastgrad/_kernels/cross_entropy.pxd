cdef bint is_plain(logits, target)
