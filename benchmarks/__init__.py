"""Ours beside the old way, in one run: ``make bench``, or ``python -m benchmarks``.

``subjects`` says what is compared, ``inputs`` makes the photographs and the weights, ``worker`` is
the process that is timed, ``measure`` asks it, ``report`` writes the table, the chart and the
costs. What was tried for speed, kept or dropped, is in ``NOTES.md``.
"""
