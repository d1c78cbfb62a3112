#!/usr/bin/env bash
# What deploy/compose.yaml describes, as plain processes and with its own files: two gateways behind HAProxy on a PostgreSQL
# primary with a synchronous replica. While deliveries are sent through HAProxy, a gateway is killed, then the primary, and
# the replica is promoted. Afterwards each delivery has to be stored once and to have reached the backend. Takes about
# 20 s. DELIVERIES says how many are sent, BINARY which gateway is tried.
set -euo pipefail
cd "$(dirname "$0")/.."

deliveries=${DELIVERIES:-120}
binary=${BINARY:-target/debug/countersign}
patience=60
if ! command -v haproxy >/dev/null; then
    echo "skipped: haproxy is not installed"
    exit 0
fi
bin=${COUNTERSIGN_POSTGRES_BIN:-$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)}
# PostgreSQL refuses to be run by root.
as_postgres=()
[ "$(id -u)" != 0 ] || as_postgres=(setpriv "--reuid=$(id -u postgres)" "--regid=$(id -g postgres)" --clear-groups)

directory=$(mktemp -d)
processes=()
finish() {
    status=$?
    [ "$status" = 0 ] || tail -n 20 "$directory"/*.log "$directory/answers"
    kill "${processes[@]}" 2>/dev/null || true
    for data in "$directory"/{primary,replica}; do
        "${as_postgres[@]}" "$bin/pg_ctl" stop -s -m immediate -D "$data" 2>/dev/null || true
    done
    wait || true
    rm -rf "$directory"
}
trap finish EXIT
chmod 755 "$directory"
[ "$(id -u)" != 0 ] || chown postgres "$directory"

say() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
until_true() {
    local what=$1 end=$((SECONDS + patience))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || { echo "did not happen: $what"; exit 1; }
        sleep 0.1
    done
}
# One that nobody listens on; another process may take it meanwhile, but hardly so soon.
free_port() {
    local port
    while port=$((RANDOM % 20000 + 10000)) && (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
    echo "$port"
}

export POSTGRES_USER=countersign POSTGRES_DB=postgres POSTGRES_PASSWORD=password-of-the-test
export PGPASSWORD=$POSTGRES_PASSWORD PGUSER=$POSTGRES_USER PGHOST=127.0.0.1 PATH="$bin:$PATH"
primary_port=$(free_port)
replica_port=$(free_port)
psql() { command psql -X -q -A -t -d "$POSTGRES_DB" "$@"; }
serve=(-c listen_addresses=127.0.0.1 -c "unix_socket_directories=")
cp deploy/postgres/*.sh "$directory"

printf '%s' "$POSTGRES_PASSWORD" >"$directory/password"
"${as_postgres[@]}" "$bin/initdb" --no-sync --auth=scram-sha-256 --username="$POSTGRES_USER" \
    --pwfile="$directory/password" -D "$directory/primary" >"$directory/initdb.log"
start_primary() {
    (cd / && "${as_postgres[@]}" "$bin/pg_ctl" start -s -w -t "$patience" -D "$directory/primary" \
        -l "$directory/primary.log" -o "${serve[*]} -p $primary_port")
}
start_primary
PGPORT=$primary_port PGDATA=$directory/primary "${as_postgres[@]}" bash "$directory/primary.sh"
"${as_postgres[@]}" "$bin/pg_ctl" stop -s -m fast -D "$directory/primary"
start_primary
(cd / && PGDATA=$directory/replica PRIMARY="host=127.0.0.1 port=$primary_port" exec "${as_postgres[@]}" \
    bash "$directory/replica.sh" "${serve[@]}" -p "$replica_port") >"$directory/replica.log" 2>&1 &
replicates() { [ "$(PGPORT=$primary_port psql -c 'SELECT sync_state FROM pg_stat_replication')" = sync ]; }
until_true "the replica is synchronous" replicates
say "PostgreSQL $(PGPORT=$primary_port psql -c 'SHOW server_version'): primary and synchronous replica"

# HAProxy is the backend, too: it writes down what it gets, and answers.
backend_port=$(free_port)
cat >"$directory/backend.cfg" <<CFG
global
    log stdout format raw local0
defaults
    mode http
    timeout client 60s
    timeout http-keep-alive 60s
frontend backend
    bind 127.0.0.1:$backend_port
    log global
    http-request capture req.hdr(countersign-delivery-id) len 64
    http-request capture req.hdr(countersign-attempt) len 8
    log-format "%[capture.req.hdr(0)] %[capture.req.hdr(1)]"
    http-request return status 200
CFG
haproxy -db -f "$directory/backend.cfg" >"$directory/delivered" 2>"$directory/backend.log" &
processes+=($!)

# Signed for, and with an operator, as in compose.yaml.
export GITHUB_WEBHOOK_SECRET=secret-of-the-topology-test COUNTERSIGN_ADMIN_TOKEN=token-of-the-topology-test
export DATABASE_URL="postgres://$POSTGRES_USER:$POSTGRES_PASSWORD@127.0.0.1:$primary_port,127.0.0.1:$replica_port/$POSTGRES_DB?sslmode=disable&target_session_attrs=read-write"
gateways=()
start_gateway() {
    local own=$directory/gateway-$1
    mkdir -p "$own"
    sed -e 's/0\.0\.0\.0:808[01]/127.0.0.1:0/' -e 's|172\.30\.0\.0/24|127.0.0.0/8|' -e "s|/var/lib/countersign|$own/data|" \
        -e "s|http://backend.internal:3000|http://127.0.0.1:$backend_port|" deploy/gateway.toml >"$own/countersign.toml"
    "$binary" run --config "$own/countersign.toml" >"$own/ready" 2>"$own.log" &
    gateways+=($!)
    processes+=($!)
    until_true "gateway $1 is ready" grep -qs '^ready' "$own/ready"
    export "GATEWAY_$1=$(sed 's/.*listen=\([^ ]*\).*/\1/' "$own/ready")"
    export "GATEWAY_$1_ADMIN=$(sed 's/.*admin=[^ ]*:\([0-9]*\).*/\1/' "$own/ready")"
}
start_gateway 1
start_gateway 2
LISTEN=127.0.0.1:$(free_port)
export LISTEN
haproxy -db -f deploy/haproxy.cfg >"$directory/haproxy.log" 2>&1 &
processes+=($!)
answers() { (: <>"/dev/tcp/${LISTEN/:/\/}") 2>/dev/null; }
until_true "HAProxy answers" answers
say "two gateways behind HAProxy"

# A provider: sends again until it is told that it has arrived.
send() {
    local end=$((SECONDS + patience))
    # A body of its own: the same bytes under another id are a replay.
    until printf '{"zen":"%s"}' "$1" | "$binary" send --provider github --secret "$GITHUB_WEBHOOK_SECRET" --event push \
        --id "$1" --body - --to "http://$LISTEN/webhooks/github" >>"$directory/answers" 2>&1; do
        [ "$SECONDS" -lt "$end" ] || return 1
        echo "$1" >>"$directory/refused"
        sleep 0.2
    done
    echo "$1" >>"$directory/acknowledged"
}
touch "$directory"/{acknowledged,refused,answers}
for worker in 0 1 2 3; do
    (for ((n = worker; n < deliveries; n += 4)); do send "d-$n"; done) &
    workers[worker]=$!
done
acknowledged() { [ "$(wc -l <"$directory/acknowledged")" -ge "$1" ]; }
until_true "a quarter is acknowledged" acknowledged $((deliveries / 4))
kill -KILL "${gateways[0]}"
wait "${gateways[0]}" 2>/dev/null || true
say "killed a gateway after $(wc -l <"$directory/acknowledged") of $deliveries"
until_true "half is acknowledged" acknowledged $((deliveries / 2))
"${as_postgres[@]}" "$bin/pg_ctl" stop -s -m immediate -D "$directory/primary"
say "lost the primary after $(wc -l <"$directory/acknowledged")"
"${as_postgres[@]}" "$bin/pg_ctl" promote -s -w -t "$patience" -D "$directory/replica"
say "promoted the replica"
for worker in "${workers[@]}"; do wait "$worker"; done
say "all $deliveries acknowledged; $(wc -l <"$directory/refused") tries were not"

export PGPORT=$replica_port
pending() { psql -c "SELECT count(*) FROM countersign.forward WHERE state <> 'delivered'"; }
nothing_pending() { [ "$(pending)" = 0 ]; }
until_true "all is delivered" nothing_pending
psql -c "SELECT delivery_id FROM countersign.delivery" | sort >"$directory/stored"
sort "$directory/acknowledged" >"$directory/expected"
# An attempt that its gateway did not live to settle is made again, and counted.
cut -d ' ' -f 1 "$directory/delivered" | sort -u >"$directory/arrived"
diff "$directory/expected" "$directory/stored"
diff "$directory/expected" "$directory/arrived"
[ -z "$(sort "$directory/delivered" | uniq -d)" ] || { echo "an attempt was made twice"; exit 1; }
say "each stored once, and delivered: $(wc -l <"$directory/delivered") attempts for $deliveries deliveries"
