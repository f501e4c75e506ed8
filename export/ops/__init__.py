"""Scoring operators of the ONNX domain ``edgead``: each is one node, with plain operators as its body.

A runtime that knows nothing of them executes the body; TensorRT takes a plugin of that name where one is registered.
"""

from __future__ import annotations

DOMAIN = "edgead"
VERSION = 1
# What TensorRT's parser looks a plugin up by.
PLUGIN_NAMESPACE, PLUGIN_VERSION = "edgead", "1"
