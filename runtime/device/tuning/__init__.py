"""``edgead tune``: which backend, precision and number of threads a device should run a bundle with, by measurement."""
