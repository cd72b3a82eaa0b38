# What a stage needs around it on a site with containers: Python, torch and what robust imports.
# The code is not in it: it travels with each job. HTCondor starts the command itself, so there is
# no entrypoint.
#
#     docker build -t robust .
FROM python:3.11-slim-bookworm

# condor_ssh_to_job's sftp wants an sftp-server inside the image; `condorctl fetch` needs only sh,
# find, head and sha256sum, which Debian has.
RUN apt-get update \
    && apt-get install -y --no-install-recommends openssh-sftp-server \
    && rm -rf /var/lib/apt/lists/*

RUN pip install --no-cache-dir "torch>=2.8" "torchvision>=0.23" "scikit-learn>=1.6"

RUN useradd --create-home stage
USER stage
