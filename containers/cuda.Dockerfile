# edgead's light runtime on an NVIDIA GPU of a PC or server: ONNX Runtime with CUDA, and TensorRT. x86-64.
# **Never built or run**: no registry and no GPU were at hand. Its steps are those of cpu.Dockerfile but for the base.
#
#   make release
#   docker build -t edgead:cuda -f containers/cuda.Dockerfile .
#   docker run --rm --gpus all -v /opt/edgead:/models -v edgead-state:/var/lib/edgead edgead:cuda \
#       run /models/plate.edgead --source rtsp://camera/1 --backend onnxruntime-cuda --wait --serve 127.0.0.1:8080
ARG BASE=nvcr.io/nvidia/tensorrt:25.08-py3
FROM ${BASE}

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
ARG EXTRAS=gpu,cuda13,camera,mqtt,prometheus
COPY constraints.txt dist/release/edgead-*-manylinux*.whl /wheels/
# TensorRT's Python bindings are those of the base image.
RUN python3 -m venv --system-site-packages /venv \
    && /venv/bin/pip install --no-cache-dir --disable-pip-version-check -c /wheels/constraints.txt \
        "$(ls /wheels/edgead-*_"$(uname -m)".whl)[${EXTRAS}]" \
    && rm -rf /wheels \
    && useradd --system --uid 10001 --groups video --home-dir /var/lib/edgead --create-home edgead
COPY containers/healthcheck.py /usr/local/lib/edgead/healthcheck.py
# Engines are built on the device (`edgead build`) and outlive the container in the volume.
ENV PATH=/venv/bin:$PATH EDGEAD_ENGINE_CACHE=/var/lib/edgead/engines
USER 10001
WORKDIR /var/lib/edgead
VOLUME /var/lib/edgead
# A first start loads CUDA's libraries, which takes longer.
HEALTHCHECK --interval=20s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-I", "/usr/local/lib/edgead/healthcheck.py"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["edgead"]
CMD ["doctor"]
