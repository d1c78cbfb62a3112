-- Format 2: claims stand in the order of their arrival, so that an acceptance does not write to random pages.

DROP INDEX claim_expiry;
ALTER TABLE claim RENAME TO countersign_claim_1;
CREATE TABLE claim (
    row         INTEGER PRIMARY KEY, -- in the order of arrival; VACUUM keeps it since it is a column
    key         BLOB, -- of the delivery id; from format 1 also that of a replay guard
    delivery    BLOB NOT NULL,
    body_digest BLOB NOT NULL, -- tells a repetition from a conflict
    expires_at  INTEGER NOT NULL,
    guard       BLOB  -- the key of the replay guard
) STRICT;
-- Before the rows: made afterwards, it would be sorted in memory.
CREATE INDEX claim_expiry ON claim (expires_at);
INSERT INTO claim SELECT NULL, key, delivery, body_digest, expires_at, NULL FROM countersign_claim_1;
DROP TABLE countersign_claim_1;

-- Where claims are found by their keys, many in one run; made of the table above, and without it nothing.
CREATE TABLE claim_run (
    run   INTEGER NOT NULL, -- the row of its last claim
    chunk INTEGER NOT NULL, -- of the keys that begin with these bits
    keys  BLOB NOT NULL,    -- sorted: 8 bytes of a key, and 4 that say how many rows before the last its claim stands
    PRIMARY KEY (run, chunk)
) WITHOUT ROWID, STRICT;

-- The same, checked without a table being made of the words at each insertion.
ALTER TABLE forward RENAME TO countersign_forward_1;
CREATE TABLE forward (
    delivery      BLOB NOT NULL,
    destination   TEXT NOT NULL,
    state         TEXT NOT NULL CHECK (state = 'waiting' OR state = 'in_flight' OR state = 'delivered'
        OR state = 'dead' OR state = 'cancelled'),
    due_at        INTEGER NOT NULL,
    attempts      INTEGER NOT NULL,
    pending_since INTEGER NOT NULL,
    replay        INTEGER NOT NULL,
    settled_at    INTEGER, -- null while waiting or in flight
    last_outcome  TEXT,
    PRIMARY KEY (delivery, destination)
) WITHOUT ROWID, STRICT;

DROP INDEX forward_pending;
DROP INDEX forward_dead;
DROP INDEX forward_settled;
-- Leases, the next due time, and what the start must count: only what is pending, however much has been delivered.
CREATE INDEX forward_pending ON forward (destination, state, due_at, delivery, pending_since, settled_at)
    WHERE settled_at IS NULL;
CREATE INDEX forward_dead ON forward (destination) WHERE state = 'dead';
-- Retention; dead letters are not in it.
CREATE INDEX forward_settled ON forward (settled_at, delivery, destination)
    WHERE state = 'delivered' OR state = 'cancelled';

-- Secrets that came with a handshake, until an operator has been shown them.
CREATE TABLE handed_over (
    source      TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    sender      TEXT NOT NULL,
    secret      BLOB NOT NULL
) STRICT;

INSERT INTO forward SELECT * FROM countersign_forward_1;
DROP TABLE countersign_forward_1;
