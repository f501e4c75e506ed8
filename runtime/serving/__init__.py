"""A bundle served by the Open Inference Protocol (KServe v2), over gRPC and REST, for those who send images and ask.

`model` judges and knows the messages (tritonclient's); `rpc` and `rest` carry them; `server.InferenceServer`
is what the command line starts. It imports `inspection`, `imaging` and `http_server`.
"""
