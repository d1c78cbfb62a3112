-- Format 1. Times are milliseconds since the Unix epoch in steady time, which begins at the database's own; only leases go
-- by the database's clock itself. Ids are UUIDv7.

CREATE SCHEMA IF NOT EXISTS countersign;

CREATE TABLE countersign.meta (format integer NOT NULL);

-- One row per accepted webhook.
CREATE TABLE countersign.delivery (
    id          uuid PRIMARY KEY,
    source      text NOT NULL,
    delivery_id text,
    event       text,
    received_at bigint NOT NULL,
    sender      text NOT NULL,
    method      text NOT NULL,
    target      text NOT NULL,
    verified    boolean NOT NULL,
    scheme      text NOT NULL,
    secret      text,
    skew        bigint,
    forwards    integer NOT NULL, -- how many it had when it was accepted
    checksum    bytea NOT NULL,   -- over everything that a backend may get to see
    headers     bytea NOT NULL,   -- lines `name: value\r\n`, as on the wire
    body        bytea NOT NULL
);
-- Retention of what was never forwarded.
CREATE INDEX delivery_unrouted ON countersign.delivery (received_at) WHERE forwards = 0;

-- Updated twice in its life, where it stands as far as there is room.
CREATE TABLE countersign.forward (
    delivery      uuid NOT NULL,
    destination   text NOT NULL,
    state         text NOT NULL CHECK (state IN ('waiting', 'in_flight', 'delivered', 'dead', 'cancelled')),
    due_at        bigint NOT NULL,
    attempts      integer NOT NULL,
    pending_since bigint NOT NULL,
    replay        boolean NOT NULL,
    settled_at    bigint,      -- null while waiting or in flight
    last_outcome  text,
    held_by       uuid,        -- the gateway that attempts it
    held_since    timestamptz,
    waited        bigint NOT NULL DEFAULT 0, -- milliseconds that it was due and could not be attempted
    PRIMARY KEY (delivery, destination)
) WITH (fillfactor = 85);
-- Leases, the next due time and depths: only what is pending, however much has been delivered.
CREATE INDEX forward_waiting ON countersign.forward (destination, due_at, delivery) INCLUDE (pending_since)
    WHERE state = 'waiting';
CREATE INDEX forward_in_flight ON countersign.forward (held_by) WHERE state = 'in_flight';
CREATE INDEX forward_dead ON countersign.forward (delivery, destination) INCLUDE (last_outcome) WHERE state = 'dead';
-- Retention; dead letters are not in it.
CREATE INDEX forward_settled ON countersign.forward (settled_at, delivery, destination)
    WHERE state = 'delivered' OR state = 'cancelled';

-- Of destinations with an order: whose turn comes when. The first of a key is the only one that may be attempted; for as
-- long as a forward is not the first, its due_at lies 2^50 milliseconds ahead.
CREATE TABLE countersign.ordered (
    destination text NOT NULL,
    order_key   text NOT NULL,   -- what kind of order it is a key of, a colon, and the value
    arrival     bigint NOT NULL, -- ascends within a key
    delivery    uuid NOT NULL,
    PRIMARY KEY (destination, order_key, arrival, delivery)
);
CREATE UNIQUE INDEX ordered_forward ON countersign.ordered (delivery, destination);

-- Failures, retries and replays; a first attempt that succeeded has nothing to tell.
CREATE TABLE countersign.attempt (
    number      bigint GENERATED ALWAYS AS IDENTITY, -- in the order in which they ended
    delivery    uuid NOT NULL,
    destination text NOT NULL,
    attempt     integer NOT NULL,
    started_at  bigint NOT NULL,
    duration_ms bigint NOT NULL,
    outcome     text NOT NULL,
    status      integer,
    detail      text NOT NULL
);
CREATE INDEX attempt_delivery ON countersign.attempt (delivery, number);

-- Of delivery ids and of replay guards.
CREATE TABLE countersign.claim (
    key         bytea PRIMARY KEY,
    delivery    uuid NOT NULL,
    body_digest bytea NOT NULL, -- tells a repetition from a conflict
    claimed_at  bigint NOT NULL,
    expires_at  bigint NOT NULL
);
CREATE INDEX claim_expiry ON countersign.claim (expires_at);

-- Secrets that came with a handshake, until an operator has been shown them.
CREATE TABLE countersign.handed_over (
    source      text NOT NULL,
    received_at bigint NOT NULL,
    sender      text NOT NULL,
    secret      bytea NOT NULL
);

-- How the secrets of sources have been used, by their names.
CREATE TABLE countersign.secret_use (
    source    text NOT NULL,
    secret    text NOT NULL,
    since     bigint NOT NULL, -- when the count began
    uses      bigint NOT NULL,
    last_used bigint,          -- null while there has been none
    PRIMARY KEY (source, secret)
);

-- Gateways that run. What one attempts is its own until it expires here, by the database's clock.
CREATE TABLE countersign.gateway (
    id         uuid PRIMARY KEY,
    name       text NOT NULL,
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 50);
