"""Commands that answer for a station: what was recorded, what it was taught, and the study before its release.

One file a command.
"""
