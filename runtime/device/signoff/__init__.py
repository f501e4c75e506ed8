"""``edgead signoff``: the measurement-system study of a station, as quality engineers ask for it before release.

`parts` reads the folder of parts and their captures, `study` judges them, `agreement` has the statistics, `changes`
the small changes of light, place, focus and compression that every capture is judged under as well.
"""
