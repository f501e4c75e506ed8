"""What a run did, as numbers: the ledger of frames, latency, health of sources, reports of sinks, the summary.

Filled in by `streaming`, shown by `sinks` and `dashboard`, which is why it stands below both. It imports `decision` and
what lies beside the rooms. Public: `summary.StreamSummary`, `frame_ledger.Counts`, `latency.Latency`.
"""
