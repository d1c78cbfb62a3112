#!/bin/bash
# Copies the primary when there is nothing yet, and follows it. Promoted, it waits for no replica until it is given one.
set -euo pipefail

if ! [ -s "$PGDATA/PG_VERSION" ]; then
    export PGPASSWORD="$POSTGRES_PASSWORD"
    pg_basebackup --write-recovery-conf --checkpoint=fast --wal-method=stream --pgdata="$PGDATA" \
        --dbname="${PRIMARY:-host=primary} user=replicator application_name=replica"
    chmod 700 "$PGDATA"
fi
exec postgres -c synchronous_standby_names= "$@"
