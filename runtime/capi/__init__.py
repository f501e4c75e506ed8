"""libedgead, the decision path as a C library: what a wheel brings of it, and how a program finds that.

The library itself is C++ in ``src/`` behind ``include/edgead.h``; `location` says where header and library lie. The
Python runtime does not call it: each of them checks the other.
"""
