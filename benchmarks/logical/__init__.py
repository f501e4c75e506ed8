"""Scenes of real cut-out parts with rules, and test images that break one rule at a time: what nearest patches miss.

``python -m benchmarks.logical make DATA DIR`` writes a category in the layout of MVTec LOCO AD (Bergmann et al., IJCV
2022); ``python -m benchmarks.logical judge MODEL DIR`` says how a model does on logical and on structural anomalies.
"""
