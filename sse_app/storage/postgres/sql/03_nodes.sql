-- The nodes of a cluster, and what they say to each other that is too long for a notification.

-- With this secret the nodes seal what they say: every role that may connect to the database can listen and notify.
CREATE TABLE sse_app.cluster (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    secret bytea NOT NULL
);

INSERT INTO sse_app.cluster (secret)
VALUES (sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8')));

-- One row for each name of a node, which is kept for long after its end: the numbers of streams begin with its number.
-- place: the machine and the state directory, which one server uses at a time: a process from there takes over at once.
-- instance: grows from one process of the node to the next. All times are those of the database's clock.
CREATE TABLE sse_app.nodes (
    name text PRIMARY KEY,
    number smallint NOT NULL UNIQUE CHECK (number BETWEEN 1 AND 511),
    place text NOT NULL,
    instance bigint NOT NULL DEFAULT 0,
    version text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    heard_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    has_left boolean NOT NULL DEFAULT false
) WITH (fillfactor = 50);

-- After a crash it is empty, and on a replica too: what is said is good for seconds only.
CREATE UNLOGGED TABLE sse_app.messages (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    body bytea NOT NULL
);

ALTER TABLE sse_app.messages ALTER COLUMN body SET STORAGE EXTERNAL;

-- Claim a name for a process of a place, and return its number, and the time. Where there is none, another place has the name, and
-- was heard at that time; or, where there is no time either, all numbers are taken.
-- silence: after how long without a heartbeat the other place has the name no more; it has not either where it was last
-- heard at the time given as unheard_since, for which the caller has waited as long by its own clock.
-- forget: after how long a number is given away where none is free; keep: after how long it is free.
CREATE FUNCTION sse_app.claim_node(
    claimed text, claimed_place text, claimed_version text,
    silence interval, forget interval, keep interval, unheard_since timestamptz,
    OUT claimed_number smallint, OUT heard timestamptz, OUT clock double precision
) LANGUAGE plpgsql AS $$
DECLARE
    now timestamptz;
    node sse_app.nodes;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);  -- a start does not wait for a standby that is away
    PERFORM pg_advisory_xact_lock(hashtextextended('sse_app.nodes', 0));
    now := clock_timestamp();
    clock := extract(epoch FROM now);
    SELECT * INTO node FROM sse_app.nodes WHERE name = claimed FOR UPDATE;
    IF node.name IS NOT NULL THEN
        IF node.place <> claimed_place AND NOT node.has_left AND node.heard_at > now - silence
            AND node.heard_at IS DISTINCT FROM unheard_since
        THEN
            heard := node.heard_at;
            RETURN;
        END IF;
        UPDATE sse_app.nodes
        SET place = claimed_place, version = claimed_version, heard_at = now, has_left = false
        WHERE name = claimed;
        claimed_number := node.number;
        RETURN;
    END IF;
    DELETE FROM sse_app.nodes WHERE heard_at < now - keep;
    SELECT min(free) INTO claimed_number FROM generate_series(1, 511) AS free
    WHERE free NOT IN (SELECT number FROM sse_app.nodes);
    IF claimed_number IS NULL THEN
        DELETE FROM sse_app.nodes WHERE name = (
            SELECT name FROM sse_app.nodes WHERE has_left OR heard_at < now - forget ORDER BY heard_at LIMIT 1
        ) RETURNING number INTO claimed_number;
    END IF;
    IF claimed_number IS NOT NULL THEN
        INSERT INTO sse_app.nodes (name, number, place, version)
        VALUES (claimed, claimed_number, claimed_place, claimed_version);
    END IF;
END
$$;

-- Note that a node is there, notify the others of what it says, and return all nodes, and the secret.
-- its_instance: 0 for a process that is to take its place among the others; it gets the next one.
-- A process whose node is another's by now, of the same place or of another one, changes nothing, and is not heard.
CREATE FUNCTION sse_app.beat(
    its_name text, its_number smallint, its_place text, its_version text, its_instance bigint, said text[],
    silence interval, forget interval
) RETURNS TABLE (
    node text, node_number smallint, node_instance bigint, is_here boolean, age double precision,
    clock double precision, sealed_with bytea
) LANGUAGE plpgsql AS $$
DECLARE
    now timestamptz := clock_timestamp();
    is_heard boolean;
BEGIN
    -- Nothing of this has to be on the disk before others know it, nor on a standby.
    PERFORM set_config('synchronous_commit', 'off', true);
    IF NOT EXISTS (SELECT FROM sse_app.nodes WHERE name = its_name) THEN  -- as after a backup was restored
        DELETE FROM sse_app.nodes WHERE number = its_number AND (has_left OR heard_at < now - forget);
        INSERT INTO sse_app.nodes (name, number, place, version, instance)
        VALUES (its_name, its_number, its_place, its_version, its_instance)
        ON CONFLICT DO NOTHING;
    END IF;
    UPDATE sse_app.nodes AS one
    SET heard_at = now, place = its_place, version = its_version, has_left = false,
        started_at = CASE its_instance WHEN 0 THEN now ELSE one.started_at END,
        instance = CASE its_instance
            WHEN 0 THEN greatest(one.instance + 1, (extract(epoch FROM now) * 1000000)::bigint)
            ELSE greatest(one.instance, its_instance)
        END
    WHERE one.name = its_name AND one.number = its_number AND (
        (one.place = its_place AND (its_instance = 0 OR one.instance <= its_instance))
        OR (one.place <> its_place AND (one.has_left OR one.heard_at < now - silence))
    ) AND (its_instance = 0 OR NOT EXISTS (  -- the next process of the place may have another name
        SELECT FROM sse_app.nodes AS later
        WHERE later.place = its_place AND later.name <> its_name AND NOT later.has_left
            AND later.instance > its_instance
    ));
    is_heard := FOUND;
    IF is_heard AND its_instance = 0 THEN  -- a name that this place had before
        UPDATE sse_app.nodes SET has_left = true WHERE place = its_place AND name <> its_name AND NOT has_left;
    END IF;
    IF is_heard THEN
        PERFORM pg_notify('sse_app_cluster', each) FROM unnest(said) WITH ORDINALITY AS all_said (each, place)
        ORDER BY place;
    END IF;
    RETURN QUERY
    SELECT one.name, one.number, one.instance, one.place = its_place,
        extract(epoch FROM now - one.heard_at)::double precision,
        extract(epoch FROM clock_timestamp())::double precision, cluster.secret
    FROM sse_app.nodes AS one, sse_app.cluster
    WHERE one.name = its_name OR (NOT one.has_left AND one.heard_at > now - forget);
END
$$;

-- Let the others wait for a node no more.
CREATE FUNCTION sse_app.leave(its_name text, its_place text, its_instance bigint, said text[])
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    UPDATE sse_app.nodes SET has_left = true
    WHERE (name, place, instance) = (its_name, its_place, its_instance);
    IF FOUND THEN
        PERFORM pg_notify('sse_app_cluster', each) FROM unnest(said) AS all_said (each);
    END IF;
END
$$;

REVOKE ALL ON FUNCTION sse_app.claim_node, sse_app.beat, sse_app.leave FROM PUBLIC;
