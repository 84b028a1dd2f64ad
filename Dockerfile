# GPU image:  docker build -t rlkit .          CPU image:  docker build -t rlkit --build-arg EXTRA=cpu --build-arg BASE=ubuntu:24.04 .
# wget is what KubeRay asks the pods of a cluster with (examples/cluster/kuberay.yaml).
ARG BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04
FROM ${BASE}
ARG EXTRA=gpu
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-venv python3-dev build-essential git make libnuma1 wget \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/rlkit
COPY pyproject.toml README.md LICENSE Makefile ./
COPY scripts scripts
COPY rlkit rlkit
# With bytecode: a container that is removed at its end would compile vLLM and torch at every start.
RUN UV_COMPILE_BYTECODE=1 make install EXTRA=${EXTRA}
COPY . .
ENV PATH=/opt/rlkit/.venv/bin:$PATH
ENTRYPOINT ["rlkit"]
CMD ["train", "configs/quickstart.yaml"]
