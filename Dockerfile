# marsbench in one image: simulates, reports, serves and records; no GPU, no compiler, not root.
FROM python:3.12-slim AS build
ARG PREFIX=/opt/marsbench
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY marsbench ./marsbench
COPY workloads ./workloads
COPY baselines ./baselines
COPY mars_impl ./mars_impl
RUN python -m venv "$PREFIX"
RUN "$PREFIX/bin/python" -m pip install --no-cache-dir --no-compile ".[gateway]"

FROM python:3.12-slim
RUN useradd --create-home --uid 1000 mars && install -d -o mars /work
COPY --from=build /opt/marsbench /opt/marsbench
ENV PATH=/opt/marsbench/bin:$PATH
WORKDIR /work
USER mars
# The gateway's port, and its health: of a container that runs `serve` or `record`.
EXPOSE 8080
HEALTHCHECK --start-period=60s --interval=10s --timeout=3s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=2)"]
ENTRYPOINT ["marsbench"]
CMD ["--help"]
