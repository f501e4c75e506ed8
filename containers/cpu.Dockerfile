# edgead's light runtime for CPUs: no torch, no onnx, no compiler. x86-64 and 64-bit ARM.
#
#   make release
#   docker build -t edgead:cpu -f containers/cpu.Dockerfile .
#   docker run --rm -v /opt/edgead:/models:ro -v /srv/in:/in -v edgead-state:/var/lib/edgead edgead:cpu \
#       run /models/plate.edgead --source watch:///in --wait --serve 127.0.0.1:8080 --sink /var/lib/edgead/results.jsonl
#
# OpenCV is half as large as all of this; cameras and videos need it: --build-arg EXTRAS=cpu,camera,mqtt,prometheus
# What was built and run of it: docs/containers.md.
ARG BASE=debian:trixie-slim

FROM ${BASE} AS install
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3-venv \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
ARG EXTRAS=cpu,mqtt,prometheus
COPY constraints.txt dist/release/edgead-*-manylinux*.whl /wheels/
# The file itself, never a name that an index could answer with another package; no pip in what is kept.
RUN python3 -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --disable-pip-version-check -c /wheels/constraints.txt \
        "$(ls /wheels/edgead-*_"$(uname -m)".whl)[${EXTRAS}]" \
    && /venv/bin/pip uninstall -y pip \
    && find /venv -type d \( -name __pycache__ -o -name tests \) -prune -exec rm -rf {} +

FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && useradd --system --uid 10001 --groups video --home-dir /var/lib/edgead --create-home edgead
COPY --from=install /venv /venv
COPY containers/healthcheck.py /usr/local/lib/edgead/healthcheck.py
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /var/lib/edgead
VOLUME /var/lib/edgead
# Unhealthy after a minute without judging: no answer, a hung backend, a lost camera, a failed self-test.
HEALTHCHECK --interval=20s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-I", "/usr/local/lib/edgead/healthcheck.py"]
# `docker stop` sends SIGTERM, and edgead drains what was captured.
STOPSIGNAL SIGTERM
ENTRYPOINT ["edgead"]
CMD ["doctor"]
