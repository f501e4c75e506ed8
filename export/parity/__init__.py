"""The proof: every graph file on every runtime beside the trained model, on real images, and the gate that they pass.

`comparison` counts flips, `promise` says what each precision must keep to, `measuring` runs, and `gate` makes all files
of a model and refuses what fails. It imports `precision`, `graph` and the runtime.
"""
