# `mnist serve` with the model in the package, without torch.
#
#   docker build -t mnist-toolkit .
#   docker run --rm --read-only --tmpfs /tmp -p 127.0.0.1:8000:8000 mnist-toolkit
#
# Words after the image's name are options of mnist serve. compose.yaml says how to run it within limits.

# The tag gets Python's and Debian's fixes at each build; for the same bytes each time name a digest, as in
# --build-arg PYTHON=3.13-slim-trixie@sha256:...
ARG PYTHON=3.13-slim-trixie

FROM python:${PYTHON} AS build
# An environment is one folder to take along; pip, its cache and the checkout stay behind in this stage.
RUN python -m venv /opt/mnist
WORKDIR /src
# What the build of the package reads, and nothing else; .dockerignore lets through no more.
COPY pyproject.toml README.md LICENSE ./
COPY serve_cli serve_cli
COPY export export
COPY trainer trainer
# pip compiles what it installs, so no start has to.
RUN /opt/mnist/bin/pip install --no-cache-dir '.[serve]'

FROM python:${PYTHON}
# At the same path, as its scripts name it. The files are root's, so the server cannot change itself.
COPY --from=build /opt/mnist /opt/mnist
# onnxruntime reports to nobody; the file system is read-only, so nobody tries to keep bytecode.
ENV PATH=/opt/mnist/bin:$PATH \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1
# Numbers: Kubernetes' runAsNonRoot accepts no name. The user has no entry, no home and owns nothing; all that
# is ever written is in /tmp: forms while they are read, and the metrics that several workers share.
USER 10001:10001
EXPOSE 8000
# There is no curl in the image, and http.client, unlike urllib, asks no proxy that the environment names.
# Needs no key. With another --port give another --health-cmd, too.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-I", "-c", "import http.client; c = http.client.HTTPConnection('127.0.0.1', 8000, timeout=3); c.request('GET', '/v2/health/ready'); raise SystemExit(c.getresponse().status != 200)"]
# The server answers what it took and exits with 0, within 5 s.
STOPSIGNAL SIGTERM
# The exec form: the server itself is process 1 and gets the signal, not a shell. In a container 127.0.0.1 is
# out of reach from outside; who may come is said where the port is published.
ENTRYPOINT ["mnist", "serve", "--host", "0.0.0.0"]
