"""Image AUROC, pixel AUROC, AUPRO, F1 and the comparison of two AUROCs: plain functions of scores and labels.

They know of no model and no file. They import nothing of this floor.
"""
