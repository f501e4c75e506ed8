"""Which detector for this part: a look at its images, a short list, and a trial of each within a few minutes.

It imports `fitting`, `evaluation` and below. Public: `recommendation.recommend`, `looking.look_at`.
"""
