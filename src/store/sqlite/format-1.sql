-- Format 1. Times are milliseconds since the Unix epoch, ids the 16 bytes of a UUIDv7.

-- One row per accepted webhook. The body stands last: columns behind it could be read only by walking through it.
CREATE TABLE delivery (
    id          BLOB PRIMARY KEY NOT NULL,
    source      TEXT NOT NULL,
    delivery_id TEXT,
    event       TEXT,
    received_at INTEGER NOT NULL,
    sender      TEXT NOT NULL,
    method      TEXT NOT NULL,
    target      TEXT NOT NULL,
    verified    INTEGER NOT NULL,
    scheme      TEXT NOT NULL,
    secret      TEXT,
    skew        INTEGER,
    forwards    INTEGER NOT NULL, -- how many it had when it was accepted
    checksum    BLOB NOT NULL,    -- over everything that a backend may get to see
    headers     BLOB NOT NULL,    -- lines `name: value\r\n`, as on the wire
    body        BLOB NOT NULL
) STRICT;

-- Retention of what was never forwarded.
CREATE INDEX delivery_unrouted ON delivery (received_at) WHERE forwards = 0;

CREATE TABLE forward (
    delivery      BLOB NOT NULL,
    destination   TEXT NOT NULL,
    state         TEXT NOT NULL CHECK (state IN ('waiting', 'in_flight', 'delivered', 'dead', 'cancelled')),
    due_at        INTEGER NOT NULL,
    attempts      INTEGER NOT NULL,
    pending_since INTEGER NOT NULL,
    replay        INTEGER NOT NULL,
    settled_at    INTEGER, -- null while waiting or in flight
    last_outcome  TEXT,
    PRIMARY KEY (delivery, destination)
) WITHOUT ROWID, STRICT;

-- Leases, the next due time, and what the start must count: only what is pending, however much has been delivered.
CREATE INDEX forward_pending ON forward (destination, state, due_at, delivery, pending_since, settled_at)
    WHERE settled_at IS NULL;
CREATE INDEX forward_dead ON forward (destination) WHERE state = 'dead';
-- Retention; dead letters are not in it.
CREATE INDEX forward_settled ON forward (settled_at, delivery, destination)
    WHERE state = 'delivered' OR state = 'cancelled';

-- Failures, retries and replays; a first attempt that succeeded has nothing to tell.
CREATE TABLE attempt (
    delivery    BLOB NOT NULL,
    destination TEXT NOT NULL,
    attempt     INTEGER NOT NULL,
    started_at  INTEGER NOT NULL,
    duration_ms INTEGER NOT NULL,
    outcome     TEXT NOT NULL,
    status      INTEGER,
    detail      TEXT NOT NULL
) STRICT;

CREATE INDEX attempt_delivery ON attempt (delivery);

CREATE TABLE claim (
    key         BLOB PRIMARY KEY NOT NULL,
    delivery    BLOB NOT NULL,
    body_digest BLOB NOT NULL, -- tells a repetition from a conflict
    expires_at  INTEGER NOT NULL
) WITHOUT ROWID, STRICT;

CREATE INDEX claim_expiry ON claim (expires_at);
