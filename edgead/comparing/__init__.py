"""Detectors side by side: fit, evaluate, export and time each of them, row by row, so that a run can be resumed."""
