"""From scores to decisions: thresholds with their meaning, verdicts, what normal parts looked like, and drift from it.

Nothing here reads a file or runs a network. It imports `imaging` and what lies beside the rooms. Public:
`threshold.Threshold`, `verdict.Limits`, `baseline.Normals`, `drift.DriftWatch`.
"""
