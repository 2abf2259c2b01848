# imagemill and its locked packages, for a user without rights. It writes to /data and nowhere else:
#   docker build -t imagemill .
#   docker run --rm --read-only -v imagemill-data:/data imagemill imagemill demo
FROM python:3.11-slim AS packages
# Extras to install, such as [dask].
ARG EXTRAS=
WORKDIR /src
COPY requirements.lock pyproject.toml ./
# All but the package itself: a layer that is built and pushed again only when the locked packages change.
RUN install -D /dev/null imagemill/__init__.py && touch README.md LICENSE \
    && python -m venv /opt/imagemill \
    && /opt/imagemill/bin/pip install --no-cache-dir --constraint requirements.lock ".${EXTRAS}" \
    && /opt/imagemill/bin/pip uninstall --yes imagemill

FROM packages AS build
COPY README.md LICENSE ./
COPY imagemill imagemill
RUN /opt/imagemill/bin/pip install --no-cache-dir --no-deps --prefix /opt/package .

FROM python:3.11-slim
COPY --from=packages /opt/imagemill /opt/imagemill
COPY --from=build /opt/package /opt/imagemill
# Temporary files go to /data too, so that the root file system can be read-only.
ENV PATH=/opt/imagemill/bin:$PATH \
    HOME=/data \
    TMPDIR=/data \
    IMAGEMILL_HOME=/data/imagemill \
    PREFECT_HOME=/data/prefect \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN install -d -o 1000 -g 1000 /data
USER 1000:1000
WORKDIR /data
VOLUME /data
# The interpreter, the packages and the command are there; a run itself reports to Prefect.
HEALTHCHECK --interval=60s --timeout=20s CMD ["imagemill", "--version"]
# No ENTRYPOINT: Prefect's workers name the whole command.
CMD ["imagemill", "--help"]
