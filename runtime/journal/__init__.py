"""The record of a line: one row a part in an SQLite journal, its image beside it, and labels that people give later.

``schema.py`` has the tables and the hash chain, ``rows.py`` what a row says, ``writer.py`` the one writer with its
thread, ``retention.py`` what is removed and how that stays visible; ``reader.py`` and ``verify.py`` read beside the
writer. Nothing is overwritten: what changes a row's meaning, such as a label, is a row of its own.
"""
