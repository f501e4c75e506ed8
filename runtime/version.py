"""The version, on the lowest floor, so that every floor can name it; packages take it from here.

libedgead states it in ``capi/src/version.hpp``, which a test compares with this file.
"""

__version__ = "0.2.0"
