"""How trained detectors are trained: one seeded loop, its checkpoints, its log, and the recipes of the profiles.

The networks themselves are in `detectors`. It imports `data`, `features`, `metrics` and `probes`.
"""
