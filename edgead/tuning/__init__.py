"""Settings compared by refitting: several values of a setting, judged on probes and validation images.

It imports `fitting` and below. Public: `refitting.Refitting`, `tuning.find_good`.
"""
