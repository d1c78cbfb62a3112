-- Format 3. What holds for a destination at all gateways together.

CREATE TABLE countersign.lane (
    destination  text PRIMARY KEY,
    paused       boolean NOT NULL DEFAULT false, -- by an operator
    broken_until timestamptz,                    -- when a probe may pass; null while the breaker is closed
    pause_ms     bigint,                         -- of the breaker
    prober       uuid                            -- the gateway whose the probe is
) WITH (fillfactor = 50);

-- How many of a destination's places a gateway has. Only itself takes more, and while it holds the row of the lane; others
-- remove the row when the gateway is gone.
CREATE TABLE countersign.share (
    destination text NOT NULL,
    gateway     uuid NOT NULL,
    places      integer NOT NULL,
    PRIMARY KEY (destination, gateway)
) WITH (fillfactor = 50);
CREATE INDEX share_gateway ON countersign.share (gateway);
