# marsbench in one image: simulates, records and reports; no GPU, no compiler, not root.
FROM python:3.12-slim AS build
ARG PREFIX=/opt/marsbench
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY marsbench ./marsbench
COPY workloads ./workloads
COPY baselines ./baselines
COPY mars_impl ./mars_impl
RUN python -m venv "$PREFIX"
RUN "$PREFIX/bin/python" -m pip install --no-cache-dir --no-compile .

FROM python:3.12-slim
RUN useradd --create-home --uid 1000 mars && install -d -o mars /work
COPY --from=build /opt/marsbench /opt/marsbench
ENV PATH=/opt/marsbench/bin:$PATH
WORKDIR /work
USER mars
ENTRYPOINT ["marsbench"]
CMD ["--help"]
