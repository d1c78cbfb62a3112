-- Format 3: forwards that keep an order, what does not count against their age, and what is known of secrets. Remarks stand
-- outside of the statements, whose text is kept in the database's first page, as long as it fits.

-- waited: milliseconds that a forward was due and could not be attempted: paused, broken, over the rate, no place, not its
-- turn.
ALTER TABLE forward ADD COLUMN waited INTEGER NOT NULL DEFAULT 0;

-- Of destinations with an order: whose turn comes when. The first of a key is the only one that may be attempted; for as
-- long as a forward is not the first, its due_at lies 2^50 milliseconds ahead. order_key: what kind of order it is a key of, a
-- colon, and the value. arrival ascends within a key.
CREATE TABLE ordered (
    destination TEXT NOT NULL,
    order_key TEXT NOT NULL,
    arrival INTEGER NOT NULL,
    delivery BLOB NOT NULL,
    PRIMARY KEY (destination, order_key, arrival, delivery)
) WITHOUT ROWID, STRICT;

CREATE UNIQUE INDEX ordered_forward ON ordered (delivery, destination);

-- How the secrets of sources have been used, by their names. since: when the count began. last_used: null while there has
-- been none.
CREATE TABLE secret_use (
    source TEXT NOT NULL,
    secret TEXT NOT NULL,
    since INTEGER NOT NULL,
    uses INTEGER NOT NULL,
    last_used INTEGER,
    PRIMARY KEY (source, secret)
) WITHOUT ROWID, STRICT;
