"""The networks of the trained detectors, one file each, and the blocks that they share.

Plain `torch.nn` modules: no data, no training, no files. They import torch only.
"""
