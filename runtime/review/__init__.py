"""Recorded parts looked at by people: what to look at, their labels, what these say of escapes, and the take-over.

`review_queue` chooses parts and estimates, `pictures` shows them, `routes` answers browsers (of the live page, or of
`server` where no camera runs), `takeover` puts a taught bundle in the place of the one that judges.
"""
