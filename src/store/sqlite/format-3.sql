-- Format 3: forwards that keep an order, what does not count against their age, and what is known of secrets.

-- Milliseconds that a forward was due and could not be attempted: paused, broken, over the rate, no place, not its turn.
ALTER TABLE forward ADD COLUMN waited INTEGER NOT NULL DEFAULT 0;

-- Of destinations with an order: whose turn comes when. The first of a key is the only one that may be attempted; for as
-- long as a forward is not the first, its due_at lies 2^50 milliseconds ahead.
CREATE TABLE ordered (
    destination TEXT NOT NULL,
    order_key   TEXT NOT NULL, -- what kind of order it is a key of, a colon, and the value
    arrival     INTEGER NOT NULL, -- ascends within a key
    delivery    BLOB NOT NULL,
    PRIMARY KEY (destination, order_key, arrival, delivery)
) WITHOUT ROWID, STRICT;

CREATE UNIQUE INDEX ordered_forward ON ordered (delivery, destination);

-- How the secrets of sources have been used, by their names.
CREATE TABLE secret_use (
    source    TEXT NOT NULL,
    secret    TEXT NOT NULL,
    since     INTEGER NOT NULL, -- when the count began
    uses      INTEGER NOT NULL,
    last_used INTEGER,          -- null while there has been none
    PRIMARY KEY (source, secret)
) WITHOUT ROWID, STRICT;
