"""Built on the device: TensorRT engines and native code, without torch and without onnx.

`building` is what ``edgead build`` calls; the vendor's library runs in a process of its own. It imports `kernels` and
the runtime only.
"""
