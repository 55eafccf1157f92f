-- Publishing in a transaction of an application's own: SELECT sse_app.publish('alerts', 'risk_alert', '{"level": 3}').
--
-- publish() inserts a row into the outbox, as its caller. Triggers on that table note who it is and check the event, so
-- that there is no way around them. A deferred constraint trigger moves the transaction's rows into the log at COMMIT:
-- only then is the log locked, and the lock is the last that the transaction takes.
--
-- The functions say themselves where names are looked for and how texts are read: a session may have set both otherwise.

DO $$
BEGIN
    IF getdatabaseencoding() <> 'UTF8' THEN
        RAISE EXCEPTION 'the database has the encoding %, and must have UTF8', getdatabaseencoding();
    END IF;
END
$$;

-- What may be published: each node writes it when it begins to serve and when it is reloaded. The last one counts. The
-- lists say of each pattern of channels, of which the first that covers a channel counts: which types may be published
-- there, with spaces between them (null: any); whether events are stored; and a member that all data must have (or '').
CREATE TABLE sse_app.publishing (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    channels text[] NOT NULL,
    expressions text[] NOT NULL,
    types text[] NOT NULL,
    stored boolean[] NOT NULL,
    members text[] NOT NULL,
    body_bytes bigint NOT NULL
);

-- What each role may publish to. A regrole is dumped and restored as the role's name.
CREATE TABLE sse_app.publishers (
    role regrole NOT NULL,
    pattern text NOT NULL,
    PRIMARY KEY (role, pattern)
);

-- Empty but for transactions that have not ended, so nothing is lost with a crash that empties an unlogged table.
-- Data takes the space of rows that have gone only once they are cleared away; that is done often.
CREATE UNLOGGED TABLE sse_app.outbox (
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    number bigint GENERATED ALWAYS AS IDENTITY,
    channel text,
    type text,
    data text,
    retry bigint,
    key text,
    final boolean,
    publisher name,
    digest bytea,
    content bytea,                      -- what is stored of the data, which is not kept here
    flags integer,
    -- 1 in the first row of a transaction, whose trigger moves all of them; 0 in the others.
    turn smallint NOT NULL DEFAULT 0,
    PRIMARY KEY (xid, number)
) WITH (
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_threshold = 2147483647,
    toast.autovacuum_vacuum_threshold = 1000,
    toast.autovacuum_vacuum_scale_factor = 0
);

-- Returns one regular expression for patterns of channels, as core/channels.py has each; that of none matches no name.
CREATE FUNCTION sse_app.channel_expression(patterns text[]) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
DECLARE
    segment CONSTANT text := '[a-z0-9_-]{1,64}';
    pattern text;
    expressions text[] := '{}';
BEGIN
    FOREACH pattern IN ARRAY patterns LOOP
        IF length(pattern) > 255
            OR (pattern ~ ('^(\*\*|(' || segment || '|\*)(\.(' || segment || '|\*))*(\.\*\*)?)$')) IS NOT TRUE
        THEN
            RAISE EXCEPTION 'not a channel pattern: %', left(pattern, 80)
                USING ERRCODE = 'invalid_parameter_value', COLUMN = 'pattern';
        END IF;
        expressions := expressions || (
            SELECT string_agg(
                CASE
                    WHEN part = '**' AND n = 1 THEN '.+'
                    WHEN part = '**' THEN '(\.' || segment || ')*'
                    ELSE CASE n WHEN 1 THEN '' ELSE '\.' END || CASE part WHEN '*' THEN segment ELSE part END
                END, '' ORDER BY n
            )
            FROM unnest(string_to_array(pattern, '.')) WITH ORDINALITY AS parts (part, n)
        );
    END LOOP;
    RETURN '^(' || array_to_string(expressions, '|') || ')$';
END
$$;

-- Returns the place of the first pattern that covers a channel, or null.
--   expressions: one for each pattern.
CREATE FUNCTION sse_app.first_covering(channel text, patterns text[], expressions text[]) RETURNS integer
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    FOR place IN 1 .. coalesce(cardinality(patterns), 0) LOOP
        IF patterns[place] = channel OR (strpos(patterns[place], '*') > 0 AND channel ~ expressions[place]) THEN
            RETURN place;
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

-- Returns a regular expression for each pattern.
CREATE FUNCTION sse_app.channel_expressions(patterns text[]) RETURNS text[]
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT ARRAY(
        SELECT sse_app.channel_expression(ARRAY[pattern])
        FROM unnest(patterns) WITH ORDINALITY AS p (pattern, place) ORDER BY place)
$$;

-- Says what may be published; a node does.
CREATE FUNCTION sse_app.set_publishing(
    channels text[], types text[], stored boolean[], members text[], body_bytes bigint
) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO sse_app.publishing AS now (channels, expressions, types, stored, members, body_bytes)
        VALUES ($1, sse_app.channel_expressions($1), $2, $3, $4, $5)
        ON CONFLICT (one) DO UPDATE SET (channels, expressions, types, stored, members, body_bytes)
            = ROW (excluded.channels, excluded.expressions, excluded.types, excluded.stored, excluded.members, $5)
        WHERE (now.channels, now.types, now.stored, now.members, now.body_bytes) IS DISTINCT FROM ($1, $2, $3, $4, $5)
$$;

-- Writes a number of JSON as a node does: an integer with all of its digits, any other as the shortest text for it. What
-- stands beside an integer beyond 64 bits is written by another library there, with another form of exponents (beside).
CREATE FUNCTION sse_app.json_number(number text, beside boolean) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on SET extra_float_digits = 1 AS $$
DECLARE
    parts text[];
    digits text;
    point integer;  -- how many digits stand before the decimal point
    value double precision;
    shorter text;
BEGIN
    BEGIN
        value := number::double precision;
    EXCEPTION WHEN numeric_value_out_of_range THEN
        parts := regexp_match(number, '^-?([0-9]+)\.?([0-9]*)[eE]?([-+]?)0*([0-9]{0,9})');
        digits := parts[1] || parts[2];
        point := length(parts[1]) - length(digits) + length(ltrim(digits, '0'));
        IF point + (parts[3] || '0' || parts[4])::integer > 0 THEN
            RAISE EXCEPTION 'data has a number that is infinite as a double: %', left(number, 40)
                USING ERRCODE = 'invalid_parameter_value', COLUMN = 'data';
        END IF;
        RETURN CASE WHEN left(number, 1) = '-' THEN '-0.0' ELSE '0.0' END;
    END;
    IF number ~ '^-?[0-9]+$' THEN
        RETURN CASE number WHEN '-0' THEN '0' ELSE number END;
    END IF;
    parts := regexp_match(value::text, '^(-?)([0-9]+)\.?([0-9]*)e?(.*)$');
    digits := ltrim(parts[2] || parts[3], '0');
    point := length(digits) - length(parts[3]) + coalesce(nullif(parts[4], ''), '0')::integer;
    digits := rtrim(digits, '0');
    IF length(digits) > 1 AND point BETWEEN 16 AND 40 THEN
        -- PostgreSQL takes no text that is exactly between two doubles, others take it where it is read as this one.
        shorter := round(digits::numeric / 10)::text;
        IF (shorter || 'e' || point - length(digits) + 1)::double precision = abs(value) THEN
            point := point + length(shorter) - length(digits) + 1;
            digits := rtrim(shorter, '0');
        END IF;
    END IF;
    RETURN parts[1] || CASE
        WHEN digits = '' THEN '0.0'
        WHEN point > 16 OR point < CASE WHEN beside THEN -3 ELSE -4 END THEN
            left(digits, 1) || CASE WHEN length(digits) > 1 THEN '.' || substr(digits, 2) ELSE '' END || 'e'
            || CASE WHEN point > 0 THEN '+' ELSE '-' END
            || CASE WHEN beside AND abs(point - 1) < 10 THEN '0' ELSE '' END || abs(point - 1)
        WHEN point <= 0 THEN '0.' || repeat('0', -point) || digits
        WHEN point >= length(digits) THEN rpad(digits, point, '0') || '.0'
        ELSE left(digits, point) || '.' || substr(digits, point + 1)
    END;
END
$$;

-- Writes JSON as a node does: without spaces, each character in UTF-8 that needs no escape, each member once. Of members
-- of one name the last one counts, at the place of the first.
CREATE FUNCTION sse_app.json_written(value json, depth integer, beside boolean) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
DECLARE
    kind CONSTANT text := left(value::text, 1);
    written text;
    repeated boolean;
    names text[];
    items text[];
    places bigint[];
BEGIN
    CASE kind
    WHEN '{', '[' THEN
        IF depth > 254 THEN
            RAISE EXCEPTION 'data cannot be written as JSON: it is nested more than 254 deep'
                USING ERRCODE = 'invalid_parameter_value', COLUMN = 'data';
        END IF;
        IF kind = '[' THEN
            SELECT string_agg(
                CASE WHEN left(item::text, 1) NOT IN ('{', '[')
                    AND item::text ~ '^(-?[1-9][0-9]{0,17}|0|true|false|null|"[^\\]*")$' THEN item::text
                    ELSE sse_app.json_written(item, depth + 1, beside) END, ',' ORDER BY n
            )
            FROM json_array_elements(value) WITH ORDINALITY AS items (item, n) INTO written;
            RETURN '[' || coalesce(written, '') || ']';
        END IF;
        SELECT
            string_agg(to_json(name)::text || ':' || item, ',' ORDER BY n),
            count(*) > count(DISTINCT name COLLATE "C"), array_agg(name), array_agg(item), array_agg(n)
        FROM (
            SELECT members.key AS name, n,
                CASE WHEN left(members.value::text, 1) NOT IN ('{', '[')
                    AND members.value::text ~ '^(-?[1-9][0-9]{0,17}|0|true|false|null|"[^\\]*")$'
                    THEN members.value::text
                    ELSE sse_app.json_written(members.value, depth + 1, beside) END AS item
            FROM json_each(value) WITH ORDINALITY AS members (key, value, n)
            OFFSET 0  -- else each use of item would write it once more
        ) AS members
        INTO written, repeated, names, items, places;
        IF repeated THEN
            SELECT string_agg(to_json(name)::text || ':' || item, ',' ORDER BY n)
            FROM (
                SELECT name, min(n) AS n, (array_agg(item ORDER BY n DESC))[1] AS item
                FROM unnest(names, items, places) AS members (name, item, n)
                GROUP BY name COLLATE "C", name
            ) AS members
            INTO written;
        END IF;
        RETURN '{' || coalesce(written, '') || '}';
    WHEN '"' THEN
        RETURN CASE WHEN strpos(value::text, '\') = 0 THEN value::text ELSE to_json(value #>> '{}')::text END;
    WHEN 't', 'f', 'n' THEN
        RETURN value::text;
    ELSE
        RETURN sse_app.json_number(value::text, beside);
    END CASE;
END
$$;

-- Returns what is stored of the data of an event, and its flags: of a JSON string its text as it is (flag 1); of any other
-- value JSON as a node has written it, to an object with channel set and timestamp added.
--   member: that an object must have, or ''.
CREATE FUNCTION sse_app.event_data(channel text, data text, member text, OUT content bytea, OUT flags integer)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
#variable_conflict use_variable
DECLARE
    value json;
    kind text;
    source text := btrim(data, E' \t\n\r');
    nul text := '';
    written text;
    now_text CONSTANT text := to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"');
BEGIN
    IF data IS NULL THEN
        RAISE EXCEPTION 'data is missing' USING ERRCODE = 'invalid_parameter_value', COLUMN = 'data';
    END IF;
    flags := 0;
    BEGIN
        IF strpos(data, '\u0000') > 0 THEN
            -- No text of PostgreSQL has this character in it: another one, which is in none of the data, stands for it.
            nul := (
                SELECT chr(code) FROM generate_series(x'fdd0'::integer, x'fdef'::integer) AS code
                WHERE strpos(data, chr(code)) = 0 AND strpos(lower(data), '\u' || to_hex(code)) = 0 LIMIT 1
            );
            source := regexp_replace(source, '(?<!\\)((?:\\\\)*)\\u0000', '\1' || nul, 'g');
        END IF;
        value := source;
        kind := json_typeof(value);
        IF member <> '' AND (kind <> 'object'
            OR NOT EXISTS (SELECT FROM json_object_keys(value) AS name WHERE name = member))
        THEN
            RAISE EXCEPTION 'data.% is missing: % is conflated by it', member, channel
                USING ERRCODE = 'invalid_parameter_value', COLUMN = 'data';
        END IF;
        IF kind = 'string' THEN
            flags := 1;
            written := value #>> '{}';
            content := (
                SELECT string_agg(convert_to(part, 'UTF8'), '\x00' ORDER BY n)
                FROM unnest(CASE nul WHEN '' THEN ARRAY[written] ELSE string_to_array(written, nul) END)
                    WITH ORDINALITY AS parts (part, n)
            );
            RETURN;
        END IF;
        IF kind = 'object' THEN
            -- Two members after the others: the channel's last value counts, and a timestamp counts where it is the only
            -- one.
            source := left(source, -1)
                || CASE WHEN source ~ '^\{[ \t\n\r]*\}$' THEN '' ELSE ',' END
                || '"channel":' || to_json(channel)
                || CASE WHEN EXISTS (SELECT FROM json_object_keys(value) AS name WHERE name = 'timestamp') THEN ''
                    ELSE ',"timestamp":"' || now_text || '"' END
                || '}';
            value := source;
        END IF;
        written := sse_app.json_written(value, 1, false);
        IF written ~ '[0-9]{19}' AND EXISTS (
            SELECT FROM regexp_matches(
                regexp_replace(written, '"(?:[^"\\]|\\.)*"', '""', 'g'), '(?<![-+.0-9eE])-?[0-9]{19,}(?![.0-9eE])', 'g'
            ) AS integers (digits)
            WHERE digits[1]::numeric NOT BETWEEN -9223372036854775808 AND 18446744073709551615
        ) THEN
            written := sse_app.json_written(value, 1, true);
        END IF;
    EXCEPTION
        WHEN invalid_text_representation OR untranslatable_character OR statement_too_complex THEN
            RAISE EXCEPTION 'data is not JSON: %', SQLERRM
                USING ERRCODE = 'invalid_parameter_value', COLUMN = 'data';
    END;
    content := convert_to(CASE nul WHEN '' THEN written ELSE replace(written, nul, '\u0000') END, 'UTF8');
END
$$;

-- Notes who inserts, with the rights of that one: in a function with its owner's rights nothing could tell.
CREATE FUNCTION sse_app.outbox_publisher() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.publisher := current_user;
    RETURN NEW;
END
$$;

-- Checks an event in the order in which a node does, and makes of it what is stored.
CREATE FUNCTION sse_app.outbox_check() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
DECLARE
    settings sse_app.publishing;
    rule integer;
BEGIN
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
        RAISE EXCEPTION 'events are published in transactions that are READ COMMITTED: in a % one the log could not be '
            'locked once others have published since it began', upper(current_setting('transaction_isolation'))
            USING ERRCODE = 'feature_not_supported';
    END IF;
    IF length(NEW.channel) > 255 OR NEW.channel = 'status'
        OR (NEW.channel ~ '^[a-z0-9_-]{1,64}(\.[a-z0-9_-]{1,64})*$') IS NOT TRUE
    THEN
        RAISE EXCEPTION 'channel is not a channel name: %', coalesce(quote_literal(left(NEW.channel, 80)), 'NULL')
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'channel';
    END IF;
    IF NEW.channel ~ '^sse_app(\.|$)' OR NOT sse_app.may_publish(NEW.publisher, NEW.channel) THEN
        RAISE EXCEPTION 'the role % is not allowed to publish to %', quote_ident(NEW.publisher), NEW.channel
            USING ERRCODE = 'insufficient_privilege', COLUMN = 'channel';
    END IF;
    SELECT * INTO settings FROM sse_app.publishing;
    rule := sse_app.first_covering(NEW.channel, settings.channels, settings.expressions);
    IF rule IS NULL THEN
        RAISE EXCEPTION 'there is no channel %', NEW.channel
            USING ERRCODE = 'undefined_object', COLUMN = 'channel';
    END IF;
    IF NOT settings.stored[rule] THEN
        RAISE EXCEPTION 'events of % are not stored, so they cannot be part of a transaction: publish them over HTTP',
            NEW.channel USING ERRCODE = 'feature_not_supported', COLUMN = 'channel';
    END IF;
    IF octet_length(NEW.data) > settings.body_bytes THEN
        RAISE EXCEPTION 'data has at most % bytes here', settings.body_bytes
            USING ERRCODE = 'program_limit_exceeded', COLUMN = 'data';
    END IF;
    IF (NEW.type ~ '^[A-Za-z0-9_.:-]{1,128}$') IS NOT TRUE THEN
        RAISE EXCEPTION 'type must match [A-Za-z0-9_.:-]{1,128}'
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'type';
    END IF;
    IF NEW.type IN ('connected', 'ping', 'reset', 'closing', 'open', 'error') THEN
        RAISE EXCEPTION 'type % is reserved for the server', quote_literal(NEW.type)
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'type';
    END IF;
    IF NOT NEW.type = ANY (string_to_array(settings.types[rule], ' ')) THEN
        RAISE EXCEPTION 'type % is not a type that % takes', quote_literal(NEW.type), NEW.channel
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'type';
    END IF;
    IF NEW.retry NOT BETWEEN 0 AND 86400000 THEN
        RAISE EXCEPTION 'retry must be milliseconds from 0 to 86400000'
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'retry';
    END IF;
    IF NEW.key !~ '^[!-~]{1,255}$' THEN
        RAISE EXCEPTION 'key must be 1 to 255 visible ASCII characters'
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'key';
    END IF;
    IF NEW.key IS NOT NULL THEN
        NEW.digest := sha256(convert_to(
            concat_ws(E'\n', NEW.channel, NEW.type, coalesce(NEW.retry::text, ''), coalesce(NEW.final, false), NEW.data), 'UTF8'
        ));
        NEW.key := encode(sha256(convert_to(NEW.key, 'UTF8')), 'hex');
    END IF;
    SELECT d.content, d.flags + CASE WHEN NEW.final THEN 2 ELSE 0 END INTO NEW.content, NEW.flags
        FROM sse_app.event_data(NEW.channel, NEW.data, settings.members[rule]) AS d;
    NEW.data := NULL;
    NEW.xid := pg_current_xact_id();
    NEW.turn := CASE WHEN EXISTS (SELECT FROM sse_app.outbox WHERE xid = pg_current_xact_id()) THEN 0 ELSE 1 END;
    RETURN NEW;
END
$$;

-- Returns whether a role may publish to a channel: itself, or as a member of another; the owner may, and a superuser.
CREATE FUNCTION sse_app.may_publish(publisher name, channel text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT pg_has_role(publisher, current_user, 'USAGE') OR EXISTS (
        SELECT FROM sse_app.publishers AS allowed
        WHERE channel ~ sse_app.channel_expression(ARRAY[allowed.pattern])
            AND EXISTS (SELECT FROM pg_roles WHERE oid = allowed.role)
            AND pg_has_role(publisher, allowed.role, 'USAGE')
    )
$$;

-- Moves a transaction's events into the log, in their order. It comes once at COMMIT, in the third round of deferred
-- triggers, so that what the application defers to its COMMIT takes its locks before: whoever has the log's lock waits
-- for no other.
CREATE FUNCTION sse_app.outbox_move() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
DECLARE
    firsts bigint[];  -- of each event its number; 0 where its key is known with another event
BEGIN
    IF NEW.turn < 3 THEN
        UPDATE sse_app.outbox SET turn = turn + 1 WHERE xid = NEW.xid AND number = NEW.number;
        RETURN NULL;
    END IF;
    WITH moved AS (
        DELETE FROM sse_app.outbox WHERE xid = NEW.xid RETURNING *
    )
    SELECT (sse_app.append(
        '', 0, (SELECT setting::integer FROM pg_settings WHERE name = 'lock_timeout'), '-',
        array_agg(channel), array_agg(type), array_agg(content), array_agg(retry::integer), array_agg(flags),
        array_agg(1), array_agg('\\xff'::bytea || convert_to(publisher, 'UTF8')), array_agg(key), array_agg(digest), NULL
    )).firsts
    INTO firsts FROM (SELECT * FROM moved ORDER BY number) AS moved;
    IF 0 = ANY (firsts) THEN
        RAISE EXCEPTION 'key was used within 24 hours for another event'
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'key';
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER a_publisher BEFORE INSERT ON sse_app.outbox
    FOR EACH ROW EXECUTE FUNCTION sse_app.outbox_publisher();
CREATE TRIGGER b_check BEFORE INSERT ON sse_app.outbox
    FOR EACH ROW EXECUTE FUNCTION sse_app.outbox_check();
CREATE CONSTRAINT TRIGGER outbox_move AFTER INSERT OR UPDATE ON sse_app.outbox
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.turn > 0) EXECUTE FUNCTION sse_app.outbox_move();
-- Also in a session that applies another database's changes (session_replication_role), where others do not fire.
ALTER TABLE sse_app.outbox
    ENABLE ALWAYS TRIGGER a_publisher, ENABLE ALWAYS TRIGGER b_check, ENABLE ALWAYS TRIGGER outbox_move;

-- Publishes an event when the transaction is committed. data is JSON: an object gets its channel and a timestamp, a string
-- is sent as the text that it is, and any other value as it is. text and json keep the order of members and numbers as
-- they are written, jsonb has forgotten them. retry is in milliseconds. Of calls by one role with one key within 24 hours
-- the first publishes. A final event is the last one of its channel, until another one is published there.
CREATE FUNCTION sse_app.publish(
    channel text, type text, data text, retry bigint DEFAULT NULL, key text DEFAULT NULL, final boolean DEFAULT false
) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO sse_app.outbox (channel, type, data, retry, key, final)
        VALUES (channel, type, data, retry, key, final);
END
$$;

CREATE FUNCTION sse_app.publish(
    channel text, type text, data json, retry bigint DEFAULT NULL, key text DEFAULT NULL, final boolean DEFAULT false
) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO sse_app.outbox (channel, type, data, retry, key, final)
        VALUES (channel, type, data::text, retry, key, final);
END
$$;

CREATE FUNCTION sse_app.publish(
    channel text, type text, data jsonb, retry bigint DEFAULT NULL, key text DEFAULT NULL, final boolean DEFAULT false
) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO sse_app.outbox (channel, type, data, retry, key, final)
        VALUES (channel, type, data::text, retry, key, final);
END
$$;

-- Allows a role to publish to the channels that the patterns cover, besides those that it may publish to already.
CREATE FUNCTION sse_app.allow_publishing(role name, VARIADIC patterns text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    found oid := (SELECT oid FROM pg_roles WHERE rolname = role);
BEGIN
    IF found IS NULL THEN
        RAISE EXCEPTION 'there is no role %', quote_ident(role) USING ERRCODE = 'undefined_object';
    END IF;
    PERFORM sse_app.channel_expression(patterns);
    DELETE FROM sse_app.publishers AS gone WHERE NOT EXISTS (SELECT FROM pg_roles WHERE oid = gone.role);
    INSERT INTO sse_app.publishers AS allowed (role, pattern) SELECT found::regrole, unnest(patterns)
        ON CONFLICT DO NOTHING;
    EXECUTE format('GRANT USAGE ON SCHEMA sse_app TO %I', role);
    EXECUTE format('GRANT INSERT (channel, type, data, retry, key, final) ON sse_app.outbox TO %I', role);
    EXECUTE format(
        'GRANT EXECUTE ON FUNCTION sse_app.publish(text, text, text, bigint, text, boolean), '
        'sse_app.publish(text, text, json, bigint, text, boolean), '
        'sse_app.publish(text, text, jsonb, bigint, text, boolean) TO %I', role
    );
END
$$;

-- Takes patterns from a role again; all of them, and the right to publish at all, where none is given.
CREATE FUNCTION sse_app.forbid_publishing(role name, VARIADIC patterns text[] DEFAULT '{}') RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    DELETE FROM sse_app.publishers AS allowed
        WHERE allowed.role = (SELECT oid FROM pg_roles WHERE rolname = role)
            AND (patterns = '{}' OR allowed.pattern = ANY (patterns));
    IF patterns = '{}' THEN
        EXECUTE format('REVOKE ALL ON ALL FUNCTIONS IN SCHEMA sse_app FROM %I', role);
        EXECUTE format('REVOKE ALL ON sse_app.outbox FROM %I', role);
        EXECUTE format('REVOKE INSERT (channel, type, data, retry, key, final) ON sse_app.outbox FROM %I', role);
        EXECUTE format('REVOKE ALL ON SCHEMA sse_app FROM %I', role);
    END IF;
END
$$;

-- Functions are everyone's unless it is said; a role that may publish may use the schema.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA sse_app FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA sse_app FROM PUBLIC;
