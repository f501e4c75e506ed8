"""Bundles on their way to stations: published into a TUF repository, fetched, tried in the shadow, taken or returned.

The metadata are those of The Update Framework, made and verified by python-tuf (extra `updates`), never by own code.
"""
