"""What detectors look at: frozen backbones, their feature maps, coresets of patches, and scoring in batches.

It imports the export floor and the runtime, and nothing else of this floor. Public: `backbones.build_backbone`,
`features.FeatureExtractor`.
"""
