-- Who may ask, and how often.

CREATE TABLE service.api_keys (
    key_id text PRIMARY KEY CHECK (key_id ~ '^[0-9a-f]{12}$'),
    name text NOT NULL CHECK (name <> ''),
    scopes text[] NOT NULL CHECK (scopes <@ ARRAY['score', 'read', 'admin'] AND cardinality(scopes) > 0),
    secret_sha256 text NOT NULL,
    previous_sha256 text,
    previous_until timestamptz,
    requests_per_minute integer NOT NULL CHECK (requests_per_minute > 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    rotated_at timestamptz,
    expires_at timestamptz,
    revoked_at timestamptz
);

COMMENT ON TABLE service.api_keys IS 'Keys of the service''s clients. No secret stands here: only SHA-256 of 256 random bits.';
COMMENT ON COLUMN service.api_keys.key_id IS 'Public part of the key; the log of calls names it.';
COMMENT ON COLUMN service.api_keys.name IS 'Whom it was given to.';
COMMENT ON COLUMN service.api_keys.scopes IS 'What it opens: score, read, admin.';
COMMENT ON COLUMN service.api_keys.secret_sha256 IS 'SHA-256 of the whole key.';
COMMENT ON COLUMN service.api_keys.previous_sha256 IS 'The same of the key before the last rotation.';
COMMENT ON COLUMN service.api_keys.previous_until IS 'Until when the key before is taken, too.';
COMMENT ON COLUMN service.api_keys.requests_per_minute IS 'How many requests it may send.';
COMMENT ON COLUMN service.api_keys.created_at IS 'When it was made.';
COMMENT ON COLUMN service.api_keys.rotated_at IS 'When its secret was last changed.';
COMMENT ON COLUMN service.api_keys.expires_at IS 'When it ends; empty: never.';
COMMENT ON COLUMN service.api_keys.revoked_at IS 'When it was withdrawn.';

-- Not logged: after a crash every client begins with a full allowance.
CREATE UNLOGGED TABLE service.rate_counts (
    key_id text PRIMARY KEY,
    spent_until timestamptz NOT NULL
);
COMMENT ON TABLE service.rate_counts IS 'What each key has used of its allowance, shared by all processes.';
COMMENT ON COLUMN service.rate_counts.key_id IS 'The key.';
COMMENT ON COLUMN service.rate_counts.spent_until IS
    'When all that was asked for would be paid at the even rate; the further ahead, the less is left.';
