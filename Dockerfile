# Serves a checkpoint over HTTP (docs/recommend.md):
#   docker build -t arnn-lightning .
#   docker run -p 127.0.0.1:8000:8000 -e ARNN_TOKEN=SECRET -v "$PWD/RUN:/model:ro" arnn-lightning
FROM python:3.13-slim

WORKDIR /source
COPY . .
# The CPU build of torch; all else is checked against the hashes of requirements.lock.
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch==2.13.0 \
    && pip install --no-cache-dir --no-deps --require-hashes --requirement requirements.lock \
    && pip install --no-cache-dir --no-deps . \
    && pip check \
    && rm -rf /source/* \
    && useradd --create-home arnn

# task=serve writes its run folder below the current one.
WORKDIR /home/arnn
USER arnn
EXPOSE 8000
HEALTHCHECK --start-period=30s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["arnn", "task=serve", "checkpoint=/model", "host=0.0.0.0"]
