#!/usr/bin/env bash
# Tries the admin API with what schemathesis makes of its own description: no request may be answered by a 5xx, nor by
# anything that the description does not say. Takes about a minute. Without a network to install it from, it is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$PWD/target/schemathesis
if ! [ -x "$venv/bin/schemathesis" ]; then
    if ! { python3 -m venv "$venv" && timeout 120 "$venv/bin/pip" install --quiet 'schemathesis>=4.32,<5'; } >/dev/null 2>&1; then
        rm -rf "$venv"
        echo "skipped: schemathesis cannot be installed (it takes python3-venv, and a network)"
        exit 0
    fi
fi
[ "${1:-}" != install ] || exit 0

directory=$(mktemp -d)
gateway=
finish() {
    [ -z "$gateway" ] || { kill "$gateway" && wait "$gateway"; } 2>/dev/null || true
    rm -rf "$directory"
}
trap finish EXIT

secret=whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTEyMzQ=
cat >"$directory/countersign.toml" <<TOML
listen.address = "127.0.0.1:0"
admin = { address = "127.0.0.1:0", tokens = [{ name = "api", role = "operator", value = "a-token-of-the-test" }] }
store = { path = "data", disk_reserve = "1MiB" }
[[source]]
name = "github"
provider = "github"
secrets = [{ value = "$secret" }]
to = ["nobody"]
[[destination]]
name = "nobody"
url = "http://127.0.0.1:9/"
retry = { schedule = ["1ms"] }
TOML
binary=target/debug/countersign
"$binary" run --config "$directory/countersign.toml" >"$directory/ready" 2>"$directory/log" &
gateway=$!
for _ in $(seq 100); do
    grep -q ready "$directory/ready" && break
    sleep 0.1
done
if ! grep -q ready "$directory/ready"; then
    cat "$directory/log"
    exit 1
fi
listen=$(sed -n 's/.*listen=\([^ ]*\).*/\1/p' "$directory/ready")
admin=$(sed -n 's/.*admin=\([^ ]*\).*/\1/p' "$directory/ready")

# Something to be found: dead letters, and a request that was refused.
for id in 1 2 3; do
    "$binary" send --provider github --secret "$secret" --to "http://$listen/webhooks/github" --id "d-$id" >/dev/null
done
"$binary" send --provider github --secret another --to "http://$listen/webhooks/github" >/dev/null 2>&1 || true

# Events do not end. A text that is a time or a number to us is any text to the description, so that what is refused there
# is no break of it.
# It keeps notes where it runs.
report=$(cd "$directory" && timeout 150 "$venv/bin/schemathesis" run "http://$admin/api/v1/openapi.json" \
    --header "Authorization: Bearer a-token-of-the-test" \
    --exclude-path /api/v1/events --checks all --exclude-checks positive_data_acceptance \
    --phases examples,coverage,fuzzing,stateful --max-examples 15 --max-time 60 --seed 1 \
    --request-timeout 10 --warnings off --no-color 2>&1) && code=0 || code=$?
if [ "$code" != 0 ]; then
    printf '%s\n' "$report"
    exit 1
fi
printf '%s\n' "$report" | grep -E 'generated|passed' | tail -2
