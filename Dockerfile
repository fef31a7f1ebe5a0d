# onnxcompress on the CPU. Build and run:
#   docker build -t onnxcompress .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" onnxcompress in.onnx out.onnx --prune 0.4
FROM python:3.12-slim AS build
WORKDIR /source
RUN python -m venv /venv
COPY pyproject.toml README.md LICENSE ./
COPY onnxcompress onnxcompress
RUN /venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check .

FROM python:3.12-slim
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1
RUN useradd --create-home --uid 1000 onnxcompress
USER onnxcompress
WORKDIR /work
ENTRYPOINT ["onnxcompress"]
CMD ["--help"]
