"""The export layer: scoring module -> ONNX -> lint -> bundle -> parity on real images."""
