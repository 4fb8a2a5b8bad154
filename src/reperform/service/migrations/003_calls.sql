-- Every call, in a chain of hashes.

CREATE TABLE service.calls (
    sequence bigint PRIMARY KEY CHECK (sequence >= 0),
    hash text NOT NULL,
    entry text NOT NULL
);
COMMENT ON TABLE service.calls IS 'The log of calls; each entry holds the hash of the one before it.';
COMMENT ON COLUMN service.calls.sequence IS 'Place in the log: 0, 1, 2 … without gaps.';
COMMENT ON COLUMN service.calls.hash IS 'SHA-256 of the entry''s text.';
COMMENT ON COLUMN service.calls.entry IS 'The entry as compact JSON with sorted keys, exactly as it was hashed.';

CREATE VIEW service.v_service_calls AS
SELECT
    sequence,
    (entry::jsonb ->> 'time')::timestamptz AS "time",
    entry::jsonb ->> 'key_id' AS key_id,
    entry::jsonb ->> 'method' AS method,
    entry::jsonb ->> 'route' AS route,
    (entry::jsonb ->> 'status')::integer AS status,
    (entry::jsonb ->> 'n_transactions')::integer AS n_transactions,
    (entry::jsonb ->> 'model_version')::integer AS model_version,
    entry::jsonb ->> 'request_id' AS request_id,
    entry::jsonb ->> 'request_sha256' AS request_sha256,
    entry::jsonb ->> 'response_sha256' AS response_sha256
FROM service.calls;
COMMENT ON VIEW service.v_service_calls IS 'The log of calls by column.';
COMMENT ON COLUMN service.v_service_calls.sequence IS 'Place in the log.';
COMMENT ON COLUMN service.v_service_calls."time" IS 'When the entry was made.';
COMMENT ON COLUMN service.v_service_calls.key_id IS 'API key; empty: none was given, or none that is known.';
COMMENT ON COLUMN service.v_service_calls.method IS 'HTTP method.';
COMMENT ON COLUMN service.v_service_calls.route IS 'Route as the API describes it, without the values in it.';
COMMENT ON COLUMN service.v_service_calls.status IS 'HTTP status.';
COMMENT ON COLUMN service.v_service_calls.n_transactions IS 'Transactions that were scored.';
COMMENT ON COLUMN service.v_service_calls.model_version IS 'Version of the model that answered.';
COMMENT ON COLUMN service.v_service_calls.request_id IS 'Request, as the answer''s header names it.';
COMMENT ON COLUMN service.v_service_calls.request_sha256 IS 'SHA-256 of the request''s body.';
COMMENT ON COLUMN service.v_service_calls.response_sha256 IS 'SHA-256 of the answer''s body.';
