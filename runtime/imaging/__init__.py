"""Pixels: decoding, resizing, the region that is inspected, tiles, the pose of a part, and maps drawn over an image.

Everything here is exact arithmetic on numpy arrays, the same in training and on the device; nothing knows of models or
cameras. It imports only what lies beside the rooms (`errors`, `frame`, `files`). Public: `decode.read_image`,
`preprocess.resize`, `roi.Region`, `tiling.Tiles`, `view.View`, `heatmap.annotate`.
"""
