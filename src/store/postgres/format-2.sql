-- Format 2. Deliveries and attempts lie in ranges of the time of receipt, with which ids begin, so that retention can drop a
-- range at once. What there is already is the first range, to the end of the day; what lies outside all of them, as when a
-- gateway's clock is wrong, goes to the default, and is never refused.

ALTER TABLE countersign.delivery RENAME TO delivery_first;
ALTER INDEX countersign.delivery_pkey RENAME TO delivery_first_pkey;
ALTER INDEX countersign.delivery_unrouted RENAME TO delivery_first_unrouted;
CREATE TABLE countersign.delivery (LIKE countersign.delivery_first, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE INDEX delivery_unrouted ON countersign.delivery (received_at) WHERE forwards = 0;
CREATE TABLE countersign.delivery_default PARTITION OF countersign.delivery DEFAULT;

-- Partitions of PostgreSQL 16 and older have no identity of their own.
ALTER TABLE countersign.attempt RENAME TO attempt_first;
ALTER INDEX countersign.attempt_delivery RENAME TO attempt_first_delivery;
ALTER TABLE countersign.attempt_first ALTER COLUMN number DROP IDENTITY;
CREATE SEQUENCE countersign.attempt_order;
SELECT setval('countersign.attempt_order', coalesce(max(number), 0) + 1) FROM countersign.attempt_first;
CREATE TABLE countersign.attempt (LIKE countersign.attempt_first) PARTITION BY RANGE (delivery);
ALTER TABLE countersign.attempt ALTER COLUMN number SET DEFAULT nextval('countersign.attempt_order');
CREATE INDEX attempt_delivery ON countersign.attempt (delivery, number);
CREATE TABLE countersign.attempt_default PARTITION OF countersign.attempt DEFAULT;

DO $$
DECLARE
    tomorrow bigint := extract(epoch FROM date_trunc('day', clock_timestamp(), 'UTC') + interval '1 day') * 1000;
    high uuid := lpad(to_hex(tomorrow), 12, '0') || repeat('0', 20);
BEGIN
    WITH strays AS (DELETE FROM countersign.delivery_first WHERE id >= high RETURNING *)
    INSERT INTO countersign.delivery_default SELECT * FROM strays;
    WITH strays AS (DELETE FROM countersign.attempt_first WHERE delivery >= high RETURNING *)
    INSERT INTO countersign.attempt_default SELECT * FROM strays;
    EXECUTE format('ALTER TABLE countersign.delivery ATTACH PARTITION countersign.delivery_first
        FOR VALUES FROM (MINVALUE) TO (%L)', high);
    EXECUTE format('ALTER TABLE countersign.attempt ATTACH PARTITION countersign.attempt_first
        FOR VALUES FROM (MINVALUE) TO (%L)', high);
END $$;
