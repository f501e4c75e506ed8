"""The proof: every graph file on every runtime beside the trained model, on real images, and the gate that they pass.

`comparison` counts flips, `measuring` runs, `gate` makes all files of a model and refuses what does not keep its
promise. It imports `precision`, `graph` and the runtime.
"""
