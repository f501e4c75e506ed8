"""A fitted model as files: weights as safetensors, its card as JSON, and what the export floor is handed.

It imports `detectors` and below. Public: `model.TrainedModel`, `model.load_model`.
"""
