-- What stands on an older page gives way to a newer index that says otherwise.
DELETE FROM found_forward WHERE EXISTS (
    SELECT 1 FROM found_entry AS entry
    WHERE entry.delivery = found_forward.delivery AND entry.destination = found_forward.destination
        AND entry.rank > found_forward.rank
        AND (entry.settled_at IS NULL) <> (found_forward.settled_at IS NULL)
);
INSERT OR IGNORE INTO forward
    SELECT delivery, destination, state, due_at, attempts, pending_since, replay, settled_at, last_outcome, waited
    FROM found_forward ORDER BY rank DESC, replay DESC, attempts DESC, settled_at IS NULL;

-- Every forward stands in one of three indexes as well.
INSERT INTO finding
    SELECT delivery, 'its forward to ' || destination || ' is restored from an index', 0 FROM found_entry AS entry
    WHERE NOT EXISTS (SELECT 1 FROM forward
        WHERE forward.delivery = entry.delivery AND forward.destination = entry.destination)
    GROUP BY delivery, destination;
INSERT OR IGNORE INTO forward
    SELECT delivery, destination, state, due_at, settled_at IS NOT NULL, pending_since, 0, settled_at, NULL, 0
    FROM found_entry ORDER BY rank DESC, settled_at IS NOT NULL;

-- A name that is damaged in one of the two makes two forwards of one: the name that others have as well is right.
CREATE TABLE dropped AS
    WITH popular AS (SELECT destination, count(*) AS forwards FROM forward GROUP BY destination),
    placed AS (
        SELECT forward.delivery, forward.destination, delivery.forwards,
            EXISTS (SELECT 1 FROM found_forward AS found WHERE found.delivery = forward.delivery
                AND found.destination = forward.destination)
            AND EXISTS (SELECT 1 FROM found_entry AS entry WHERE entry.delivery = forward.delivery
                AND entry.destination = forward.destination) AS confirmed,
            popular.forwards AS popularity
        FROM forward JOIN delivery ON id = forward.delivery JOIN popular ON popular.destination = forward.destination
        WHERE delivery.forwards < (SELECT count(*) FROM forward AS other WHERE other.delivery = id)
    ),
    numbered AS (
        SELECT *, row_number() OVER (PARTITION BY delivery ORDER BY confirmed DESC, popularity DESC) AS place
        FROM placed
    )
    SELECT delivery, destination FROM numbered WHERE place > max(forwards, 1) AND NOT confirmed;
INSERT INTO finding
    SELECT delivery, 'a forward to ' || destination || ' stands in the table or in the index only: dropped', 0
    FROM dropped;
DELETE FROM forward WHERE (delivery, destination) IN (SELECT delivery, destination FROM dropped);
DROP TABLE dropped;

-- Rather early than never.
INSERT INTO finding
    SELECT delivery, 'its forward to ' || destination || ' is due at two times: the earlier is taken', 0 FROM forward
    WHERE settled_at IS NULL AND EXISTS (SELECT 1 FROM found_entry AS entry
        WHERE entry.delivery = forward.delivery AND entry.destination = forward.destination
            AND entry.settled_at IS NULL AND entry.due_at <> forward.due_at);
UPDATE forward SET due_at = (SELECT min(due_at) FROM found_entry AS entry
        WHERE entry.delivery = forward.delivery AND entry.destination = forward.destination AND entry.settled_at IS NULL)
    WHERE settled_at IS NULL AND EXISTS (SELECT 1 FROM found_entry AS entry
        WHERE entry.delivery = forward.delivery AND entry.destination = forward.destination
            AND entry.settled_at IS NULL AND entry.due_at < forward.due_at);

-- What was set aside, perhaps only since an index did not lead to it.
INSERT INTO finding
    SELECT delivery, 'it is intact after all: its forward to ' || destination || ' waits again', 0 FROM forward
    WHERE state = 'dead' AND last_outcome = 'corrupt' AND delivery IN (SELECT id FROM delivery);
UPDATE forward SET state = 'waiting', attempts = 0, replay = 1, settled_at = NULL, last_outcome = NULL
    WHERE state = 'dead' AND last_outcome = 'corrupt' AND delivery IN (SELECT id FROM delivery);

-- What is lost. Older pages may speak of what has been removed since.
DELETE FROM known WHERE id IN (SELECT id FROM delivery)
    OR NOT (certain OR id IN (SELECT delivery FROM forward));
INSERT INTO finding
    SELECT id, CASE
        WHEN EXISTS (SELECT 1 FROM forward WHERE delivery = id AND settled_at IS NULL)
            THEN 'it is damaged or lost: its forwards are dead letters'
        WHEN EXISTS (SELECT 1 FROM forward WHERE delivery = id AND state = 'delivered')
            THEN 'it is damaged or lost; it had been forwarded'
        ELSE 'it is damaged or lost'
    END || coalesce(': ' || name, ''), 1 FROM known;
UPDATE forward SET state = 'dead', settled_at = due_at, last_outcome = 'corrupt'
    WHERE settled_at IS NULL AND delivery NOT IN (SELECT id FROM delivery);

-- Dead letters keep the place at which they park their key, if they had one.
DELETE FROM ordered WHERE NOT EXISTS (SELECT 1 FROM forward
    WHERE forward.delivery = ordered.delivery AND forward.destination = ordered.destination
        AND (settled_at IS NULL OR state = 'dead'));
