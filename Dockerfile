# syntax=docker/dockerfile:1
# The service without torch, for CPU or for NVIDIA GPUs:
#   docker build -t tidegate .
#   docker build -t tidegate:cuda --build-arg RUNTIME=cuda .
# The steps are the commands of .ci/image/, which .ci/image-steps runs without a container engine.
ARG RUNTIME=cpu

FROM python:3.12-slim-bookworm AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY .ci/image .ci/image
COPY service service
COPY models models
COPY export export
RUN .ci/image/build-wheel /wheels

FROM python:3.12-slim-bookworm AS base-cpu

# CUDA 13 with cuDNN 9 is what onnxruntime-gpu's wheels are built against; Python 3.12 as above.
FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04 AS base-cuda
# No pinned versions: security updates of the base's own release are wanted.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Both bases are stages of this file, tagged above.
# hadolint ignore=DL3006
FROM base-${RUNTIME} AS runtime
ARG RUNTIME
COPY .ci/image /tmp/tidegate/.ci/image
COPY --from=wheel /wheels /tmp/tidegate/wheels
WORKDIR /tmp/tidegate
RUN .ci/image/install-runtime /opt/tidegate wheels "$RUNTIME" \
    && .ci/image/assert-without-torch /opt/tidegate

# hadolint ignore=DL3006
FROM base-${RUNTIME}
LABEL org.opencontainers.image.title="tidegate" \
    org.opencontainers.image.description="Serves recurrent sequence models with their state" \
    org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/tidegate/bin:$PATH PYTHONUNBUFFERED=1
RUN groupadd --system --gid 10001 tidegate \
    && useradd --system --uid 10001 --gid tidegate --home-dir /data --shell /usr/sbin/nologin tidegate \
    && install --directory --owner tidegate --group tidegate /data
COPY --from=runtime /opt/tidegate /opt/tidegate
COPY .ci/image/healthcheck /usr/local/bin/tidegate-healthcheck
COPY bundles /bundles
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080 8081
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["tidegate-healthcheck", "/opt/tidegate"]
# Readiness goes false on SIGTERM and running requests finish: give it time with `docker stop --timeout`.
STOPSIGNAL SIGTERM
CMD ["tidegate", "serve", "--bundles", "/bundles", "--http", "0.0.0.0:8080", "--grpc", "0.0.0.0:8081", "--data-dir", "/data"]
