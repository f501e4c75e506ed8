# edgead's light runtime on a Jetson with JetPack 6 (Orin); JetPack 7: its base, and EXTRAS with cuda13.
# **Never built or run**: no registry and no Jetson were at hand. Its steps are those of cpu.Dockerfile but for the base.
#
#   make release
#   docker build -t edgead:jetson -f containers/jetson.Dockerfile .
#   docker run --rm --runtime nvidia --device /dev/video0 -v /opt/edgead:/models -v edgead-state:/var/lib/edgead \
#       edgead:jetson run /models/plate.edgead --source 0 --backend tensorrt --precision fp16 --wait --serve 127.0.0.1:8080
ARG BASE=nvcr.io/nvidia/l4t-jetpack:r36.4.0
FROM ${BASE}

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv python3-libnvinfer python3-opencv \
        gstreamer1.0-plugins-base gstreamer1.0-plugins-good \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
ARG EXTRAS=cpu,cuda12,mqtt,prometheus
COPY dist/release/edgead-*-manylinux*.whl /wheels/
# TensorRT's Python bindings and an OpenCV that knows GStreamer are the system's; PyPI has neither for a Jetson.
# No constraints: JetPack 6 has Python 3.10, for which they name nothing.
RUN python3 -m venv --system-site-packages /venv \
    && /venv/bin/pip install --no-cache-dir --disable-pip-version-check \
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
