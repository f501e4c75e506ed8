"""Long work in parts: one after the other in this process, or at once on the nodes of a Ray cluster.

It imports `runtime` only, and Ray only where somebody asks for it.
Public: `workers.LocalWorkers`, `cluster.open_cluster`.
"""
