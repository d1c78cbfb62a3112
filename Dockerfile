# Two stages: the toolchain stays behind. Build: docker build -t countersign .
# Run (read-only root, everything that changes lives in the volume):
# A drain may take up to limits.drain, 20 s; Docker's patience is 10 s:
#   docker run --read-only --stop-timeout 30 -p 8080:8080 -v countersign:/var/lib/countersign -v ./countersign.toml:/etc/countersign/countersign.toml:ro countersign
# with `store.path = "/var/lib/countersign"` in the configuration.

FROM rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY .cargo ./.cargo
COPY src ./src
# Cargo wants to see every target that Cargo.toml names.
COPY benches ./benches
ARG REVISION=unknown
RUN COUNTERSIGN_REVISION="$REVISION" cargo build --release --locked --bin countersign

FROM debian:bookworm-slim
# The roots that backends' certificates are checked against.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 countersign \
    && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin countersign \
    && install -d -o countersign -g countersign -m 0700 /var/lib/countersign
COPY --from=build /build/target/release/countersign /usr/local/bin/countersign
USER 10001:10001
VOLUME /var/lib/countersign
EXPOSE 8080
# Asks the admin listener inside the container, which needs no published port.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["countersign", "healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["countersign"]
CMD ["run", "--config", "/etc/countersign/countersign.toml", "--log-format", "json"]
