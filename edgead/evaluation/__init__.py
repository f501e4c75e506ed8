"""A model or a bundle judged on labelled images, through the same code as the camera loop, and on probes.

It imports `model`, `metrics`, `data`, `probes` and the runtime. Public: `evaluation.evaluate`.
"""
