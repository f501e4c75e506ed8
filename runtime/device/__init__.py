"""What a device is asked from the command line: check, bench, doctor, capture, recalibration, and `tuning`.

Each file is one question with its report. It imports any room; no room imports it. Public: `check.check_bundle`,
`bench.bench`, `doctor.diagnose`, `recalibration.calibrate_bundle`.
"""
