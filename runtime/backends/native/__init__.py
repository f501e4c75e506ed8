"""Native code for the part of a graph on which a CPU spends most.

``library`` says where the compiled code is found and how it is loaded; ``knn`` searches a memory bank with it, and
``mahalanobis`` computes distances to Gaussians. Of the C sources beside them, which ``sources`` names, ``knn.c`` and
``mahalanobis.c`` are compiled and include the rest, one file an instruction set. Nothing here compiles: that is
`edgead.export.engines.native` on the device, and ``.ci/wheels`` for those who only install.
"""
