# diffuseg on the CPU. Build: `docker build -t diffuseg .`
# Run as yourself, with your data in the working directory:
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/data" diffuseg predict hippocampus SCAN.nii.gz --out results
FROM python:3.11-slim

ENV PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib
# the build of torch without CUDA: a tenth of the download
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

WORKDIR /opt/diffuseg
COPY constraints.txt ./
# torch first and exactly: anything that resolves it later would fetch another build
RUN pip install --constraint constraints.txt torch==2.13.0
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --constraint constraints.txt ".[itk,dicom]" && diffuseg --version

WORKDIR /data
ENTRYPOINT ["diffuseg"]
CMD ["--help"]
