FROM python:3.13-slim-trixie
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY serve_cli serve_cli
COPY export export
COPY trainer trainer
RUN pip install --no-cache-dir '.[train]'
USER 10001:10001
WORKDIR /tmp
