"""Commands of whoever answers for a bundle: keys, signatures, and its way to the stations."""
