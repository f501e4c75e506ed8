"""The live page of a run, in a browser: what the camera sees, what was decided, and what became of every frame.

`edgead.runtime.dashboard.sink.LivePage` is a sink, so it sits behind a bounded queue like every other;
docs/live-page.md shows it. Needs nothing but Python and Pillow.
"""
