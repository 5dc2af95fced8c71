"""Checks derivatives, and says what is wrong with them.

`problem` resolves what is differentiated, `differences` makes numbers with error bars, `search`
decides where to measure, `diagnosis` names the bug, `result` is what the user gets, `check` and
`numerical` are the public functions.
"""
