"""CUDA C++ sources of the scoring kernels, which travel with the package: they are compiled for the device at hand."""

from __future__ import annotations

from pathlib import Path

# Folder of the ``*.cuh`` files; what includes ``knn.cuh`` names it to its compiler with ``-I``.
SOURCE_FOLDER = Path(__file__).resolve().parent
