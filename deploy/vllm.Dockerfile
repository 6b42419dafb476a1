# vLLM's own image with marsbench beside it, so that `--scheduler-cls` finds the plug-in.
# Build it in the root of this repository: docker build -f deploy/vllm.Dockerfile -t vllm-marsbench .
FROM vllm/vllm-openai:v0.32.0
COPY pyproject.toml README.md LICENSE /opt/marsbench/
COPY marsbench /opt/marsbench/marsbench
COPY workloads /opt/marsbench/workloads
COPY baselines /opt/marsbench/baselines
COPY mars_impl /opt/marsbench/mars_impl
RUN python3 -m pip install --no-cache-dir /opt/marsbench
