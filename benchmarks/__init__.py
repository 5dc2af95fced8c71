"""How fast, how accurate and how large fastgrad is, beside the libraries that people use now.

    make bench           the whole suite against all peers, 20 minutes; make bench-quick: 2
    make report          measures briefly and writes README's tables and figures, 10 minutes
    python -m benchmarks limit | accuracy | scaling | bars | report | compare A B

libraries.py    which libraries there are, on how many threads; what machine this is
work.py         what a piece of work is: data, one function per library, bytes that must move
softmax.py  cross_entropy.py  linear.py  hinge.py  segments.py  centroids.py  checker.py
                the works of each group, and their cases
bench_suite.py  all cases under pytest-benchmark
clock.py        the other clock: contestants in turns, which ratios need
limit.py        what the machine can move: copies and reads by kernels of our own
bars.py         is every bar of the project met
accuracy.py     worst errors against long double
scaling.py      time and memory against size and threads; data larger than memory
report.py       tables and figures of what those saved
compare.py      what changed between two runs beyond noise
NOTES.md        what was measured, missed and tried
"""
