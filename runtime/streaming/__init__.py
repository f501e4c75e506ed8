"""The camera loop: grabbers, the queue of frames, the thread that judges, upkeep, and the stream that holds them.

A frame comes in from `sources`, is judged by an inspector, and its result goes to `sinks`; the ledger in `status` is
exact at every instant. It imports those rooms, `decision` and `imaging`. Public: `stream.Stream`,
`config.StreamConfig`.
"""
