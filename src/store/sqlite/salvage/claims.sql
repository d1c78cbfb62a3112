INSERT OR IGNORE INTO held_claim
    SELECT key, delivery, body_digest, expires_at FROM found_claim ORDER BY rank DESC, expires_at DESC;

-- A claim by a delivery's id can be made anew, for as long as the newest of its source holds, or the newest of all. One
-- that would have expired by now is not missed: an id that comes again is to be taken again.
CREATE TABLE span AS SELECT source, held_claim.expires_at - received_at AS span, max(received_at) AS received_at
    FROM held_claim JOIN delivery ON id = held_claim.delivery WHERE held_claim.expires_at > received_at GROUP BY source;
CREATE INDEX due_claim_key ON due_claim (key, received_at);
CREATE TABLE made AS
    SELECT key, due.delivery, body_digest, due.received_at + coalesce(
        (SELECT span FROM span WHERE span.source = delivery.source),
        (SELECT span FROM span ORDER BY received_at DESC LIMIT 1), 7 * 24 * 3600000) AS expires_at
    FROM due_claim AS due JOIN delivery ON id = due.delivery
    WHERE NOT EXISTS (SELECT 1 FROM due_claim AS later WHERE later.key = due.key AND later.received_at > due.received_at)
        AND NOT EXISTS (SELECT 1 FROM held_claim WHERE held_claim.key = due.key AND held_claim.delivery = due.delivery
            AND held_claim.body_digest = due.body_digest);
DELETE FROM made WHERE expires_at <= (SELECT max(received_at) FROM delivery)
    OR expires_at <= (SELECT max(settled_at) FROM forward WHERE state = 'delivered');
INSERT INTO finding SELECT delivery, 'its claim was lost or damaged, and is made anew', 0 FROM made;
INSERT INTO held_claim SELECT key, delivery, body_digest, expires_at FROM made WHERE true
    ON CONFLICT (key) DO UPDATE SET delivery = excluded.delivery, body_digest = excluded.body_digest;
DROP TABLE made;
DROP TABLE span;

-- The provider may send again what is lost.
DELETE FROM held_claim WHERE delivery IN (SELECT id FROM known) AND NOT EXISTS (
    SELECT 1 FROM forward WHERE forward.delivery = held_claim.delivery AND state IN ('delivered', 'cancelled'));

-- Retention removes what was settled first. So what was received after the settlement of something that it may remove
-- and has not has not been removed either, but is lost. Something of which a forward waits or is dead it leaves alone
-- for as long as that lasts, which says nothing. Where nothing says it, a claim is believed.
CREATE TABLE settled AS
    SELECT max(settled_at) AS settled_at FROM forward GROUP BY delivery
    HAVING min(state = 'delivered' OR state = 'cancelled');
CREATE TABLE orphan AS
    SELECT key, delivery FROM held_claim
    WHERE delivery NOT IN (SELECT id FROM delivery) AND delivery NOT IN (SELECT id FROM known)
        AND delivery > (SELECT unhex(printf('%012x', min(settled_at))) FROM settled HAVING count(*) > 0);
INSERT INTO finding
    SELECT DISTINCT delivery, 'only its claim is left: it is lost, unless it had been forwarded and removed', 1 FROM orphan;
DELETE FROM held_claim WHERE key IN (SELECT key FROM orphan);
DROP TABLE orphan;
DROP TABLE settled;

INSERT INTO claim SELECT NULL, key, delivery, body_digest, expires_at, NULL FROM held_claim;
