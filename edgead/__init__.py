"""edgead: anomaly detection from good photos to decisions on the line.

``edgead.runtime`` is the light floor that runs on the device, ``edgead.export`` turns detectors into bundles,
and the rest of this package trains, calibrates and evaluates. This file stays free of heavy imports.
"""

__version__ = "0.1.0"
