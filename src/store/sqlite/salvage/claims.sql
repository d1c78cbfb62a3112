INSERT OR IGNORE INTO claim
    SELECT key, delivery, body_digest, expires_at FROM found_claim ORDER BY rank DESC, expires_at DESC;

-- A claim by a delivery's id can be made anew; one that would have expired by now is not missed.
CREATE INDEX due_claim_key ON due_claim (key, received_at);
CREATE TABLE made AS
    SELECT key, delivery, body_digest, received_at + 7 * 24 * 3600000 AS expires_at FROM due_claim AS due
    WHERE NOT EXISTS (SELECT 1 FROM due_claim AS later WHERE later.key = due.key AND later.received_at > due.received_at)
        AND NOT EXISTS (SELECT 1 FROM claim WHERE claim.key = due.key AND claim.delivery = due.delivery
            AND claim.body_digest = due.body_digest)
        AND received_at + 7 * 24 * 3600000 > (SELECT max(received_at) FROM delivery);
INSERT INTO finding SELECT delivery, 'its claim was lost or damaged, and is made anew', 0 FROM made;
INSERT INTO claim SELECT key, delivery, body_digest, expires_at FROM made WHERE true
    ON CONFLICT (key) DO UPDATE SET delivery = excluded.delivery, body_digest = excluded.body_digest;
DROP TABLE made;

-- The provider may send again what is lost.
DELETE FROM claim WHERE delivery IN (SELECT id FROM known) AND NOT EXISTS (
    SELECT 1 FROM forward WHERE forward.delivery = claim.delivery AND state IN ('delivered', 'cancelled'));

-- Retention removes what was settled first. So what was received after the settlement of something that is still there
-- has not been removed, but lost.
CREATE TABLE orphan AS
    SELECT key, delivery FROM claim
    WHERE delivery NOT IN (SELECT id FROM delivery) AND delivery NOT IN (SELECT id FROM known)
        AND delivery > unhex(printf('%012x', coalesce((SELECT min(settled_at) FROM forward
            WHERE state = 'delivered' OR state = 'cancelled'), 0)));
INSERT INTO finding
    SELECT DISTINCT delivery, 'only its claim is left: it is lost, unless it had been forwarded and removed', 1 FROM orphan;
DELETE FROM claim WHERE key IN (SELECT key FROM orphan);
DROP TABLE orphan;
