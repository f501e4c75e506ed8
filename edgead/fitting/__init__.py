"""From folders of normal images to a trained model: what ``edgead fit`` runs.

`config` says what is asked for, `preparing` refuses what cannot be fitted, `fitting` does it, `known_defects` learns
from defects at hand, `outcome` brings what the kinds of detectors give into one form,
`view` says what of an image is seen, `aligning` learns the pose of its part, `wide_files` warns of pictures that would
be black. It imports `model`, `budget`, `detectors`, `data` and below. Public: `fit`, `FitConfig`.
"""

from edgead.fitting.config import FitConfig, FitOptions
from edgead.fitting.fitting import fit

__all__ = ["FitConfig", "FitOptions", "fit"]
