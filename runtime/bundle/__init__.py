"""The ``.edgead`` file: an archive parsed as untrusted input, its manifest, its member names and its references.

Whoever opens a bundle gets checked bytes or a `BundleError`; nothing is executed here. It imports `decision`, `imaging`
and what lies beside the rooms. Public: `bundle.Bundle`, `writing.write_bundle`, `manifest.Manifest`.
"""
