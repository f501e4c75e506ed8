"""ONNX graphs: traced from torch, told apart into network and head, split for native code, weights outside, linted.

Whole graphs in FP32; what becomes of them in other precisions is in `precision`. It imports `ops` and the runtime.
Public: `tracing.export_onnx`, `lint.lint`.
"""
