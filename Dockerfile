# What a stage needs around it on a site with containers: Python and what its code imports. The code
# is not in it: it travels with each job. HTCondor starts the command itself, so there is no
# entrypoint; nothing in it needs a certain user, since a job is whoever the node says.
#
#     condorctl image build                        torch with CUDA from PyPI, for robust: 6 GB
#     condorctl image build --arg TORCH=cpu        torch without CUDA
#     condorctl image build --arg PACKAGES=        Python alone, for stages that import nothing else
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# sftp into a running job wants an sftp-server inside the image. What `condorctl fetch`, `logs` and
# `ssh` need beside it (sh, coreutils, findutils, script) Debian always has.
RUN apt-get update \
    && apt-get install -y --no-install-recommends openssh-sftp-server \
    && rm -rf /var/lib/apt/lists/*

# gpu: the wheels of PyPI, which bring CUDA along. Else a backend as uv calls it: cpu, cu126, ...
ARG TORCH=gpu
ARG PACKAGES="torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 scikit-learn==1.9.1 pillow==13.0.0 \
    pyautoattack==0.2.0 safetensors==0.8.0 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0"
RUN if [ "$PACKAGES" ]; then \
        python3 -m pip install --no-cache-dir --break-system-packages uv==0.13.9 \
        && uv pip install --system --break-system-packages --no-cache \
            $([ "$TORCH" = gpu ] || echo "--torch-backend $TORCH") $PACKAGES; \
    fi

RUN useradd --create-home stage
USER stage
