"""Half an hour on a lent GPU machine: every stage that needs one, prepared so that no minute goes into thinking.

    python -m benchmarks.gpu_day pack --data DATA --out .day    # here, days before: images, bundles, wheels, in pieces
    python -m benchmarks.gpu_day --stage right --stage speed --kit /tmp/day --out /tmp/day/results     # there
    python -m benchmarks.gpu_day --dry-run --out /tmp/dry       # anywhere: all stages, tiny, on a GPU that is none

docs/gpu-day.md says what each stage answers. **No GPU has run any of it.**
"""
