"""From a frame to a decision on this device: how a bundle is opened, the inspector, its references replayed.

The same code for evaluation, checks and the camera loop. It imports `backends`, `bundle`, `decision`, `imaging`, and on
first use `streaming` for `Inspector.stream`. Public: `inspector.Inspector`, `replay.replay`, `device_profile`.
"""
