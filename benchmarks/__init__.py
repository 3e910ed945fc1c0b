"""Ours beside the old way, in one run: ``make bench``, or ``python -m benchmarks``.

``subjects`` says which services are compared, ``engines`` which image towers alone, ``servers``
which web servers. ``inputs`` makes the photographs and the weights, ``worker`` is the process that
is timed, ``measure`` asks it, ``report`` writes the tables and the costs, ``chart`` draws. What was
tried for speed, kept or dropped, is in ``NOTES.md``.
"""
