# One image for both halves: `python -m worker`, `python -m service`.
#
#   docker build --tag everlens .
#
# TORCH_INDEX decides the build of PyTorch; it is handed to pip as PIP_EXTRA_INDEX_URL while PyTorch
# is installed. Give it PyTorch's index of CPU builds for the small image (1 GB instead of several),
# or the index of a CUDA version for a GPU; the addresses are on PyTorch's "Get started" page.
# Empty takes what the package index offers: on x86-64 the CUDA build, which computes on a CPU too.

ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim-bookworm AS builder
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 \
    PIP_NO_INPUT=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/everlens/bin:$PATH
RUN python -m venv /opt/everlens
WORKDIR /build
COPY requirements.lock requirements.txt requirements-torch.txt requirements-nodeps.txt \
    requirements-otel.lock ./
# The order is the Makefile's: what has a hash first, so that nothing takes its place unseen.
RUN pip install --no-deps --require-hashes --requirement requirements.lock
RUN PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" \
    pip install --no-warn-conflicts --constraint requirements.txt --requirement requirements-torch.txt
RUN PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" \
    pip install --no-deps --requirement requirements-nodeps.txt
RUN pip install --no-deps --require-hashes --requirement requirements-otel.lock
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY everlens everlens
COPY service service
COPY worker worker
COPY bench bench
RUN pip install --no-deps --no-build-isolation . \
    && python -m compileall -q /opt/everlens/lib

FROM python:${PYTHON_VERSION}-slim-bookworm AS runtime
# A fixed number, so that volumes keep their owner across images. The directories exist here with
# that owner, which is what a fresh named volume takes over.
RUN groupadd --gid 10001 everlens \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/everlens everlens \
    && install -d -o everlens -g everlens /var/lib/everlens /var/cache/everlens
COPY --from=builder /opt/everlens /opt/everlens
ENV PATH=/opt/everlens/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_WAIT_POLICY=PASSIVE \
    GOMP_SPINCOUNT=10000 \
    HF_HOME=/var/cache/everlens \
    EVERLENS_DATA_DIR=/var/lib/everlens \
    EVERLENS_HOST=0.0.0.0 \
    EVERLENS_ALLOW_REMOTE=true \
    EVERLENS_PORT=8000
WORKDIR /var/lib/everlens
USER everlens
EXPOSE 8000
# Both halves end in order at SIGTERM, also as process 1.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-m", "everlens.launch.health", "service"]
CMD ["python", "-m", "service"]
