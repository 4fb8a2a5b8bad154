-- The one order of events, and what was answered.

CREATE TABLE service.journal (
    sequence bigint PRIMARY KEY CHECK (sequence > 0),
    kind text NOT NULL CHECK (kind IN ('transactions', 'labels', 'accounts')),
    rows bytea NOT NULL,
    features bytea,
    n integer NOT NULL CHECK (n > 0),
    newest_known_at timestamptz,
    clock timestamptz,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
-- What is stored was compressed already.
ALTER TABLE service.journal ALTER COLUMN rows SET STORAGE EXTERNAL;
ALTER TABLE service.journal ALTER COLUMN features SET STORAGE EXTERNAL;

COMMENT ON TABLE service.journal IS
    'Everything that changes what is answered, in one order: every process takes it in from the first to the last.';
COMMENT ON COLUMN service.journal.sequence IS 'Place in the order; 1, 2, 3 … without gaps, in order of commit.';
COMMENT ON COLUMN service.journal.kind IS 'What the rows are: transactions, labels or accounts.';
COMMENT ON COLUMN service.journal.rows IS 'The rows: an Arrow IPC stream, compressed with zstd.';
COMMENT ON COLUMN service.journal.features IS
    'KPIs of the transactions as they were computed, in the same form, so that no other process computes them again.';
COMMENT ON COLUMN service.journal.n IS 'How many rows.';
COMMENT ON COLUMN service.journal.newest_known_at IS 'Latest known_at of these transactions; empty for other kinds.';
COMMENT ON COLUMN service.journal.clock IS 'Latest known_at of all transactions up to this event.';
COMMENT ON COLUMN service.journal.at IS 'When it was written.';

CREATE TABLE service.answers (
    transaction_id text NOT NULL,
    role text NOT NULL CHECK (role IN ('champion', 'challenger')),
    account_id text NOT NULL,
    counterparty_id text,
    entity_id text NOT NULL,
    booked_at timestamptz NOT NULL,
    known_at timestamptz NOT NULL,
    amount_base double precision NOT NULL,
    score double precision NOT NULL,
    probability double precision,
    is_alert boolean NOT NULL,
    members jsonb,
    reasons jsonb,
    model_version integer NOT NULL,
    data_version text NOT NULL,
    sequence bigint NOT NULL,
    request_id text NOT NULL,
    answered_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (transaction_id, role, model_version)
);
CREATE INDEX answers_by_account ON service.answers (account_id, known_at);

COMMENT ON TABLE service.answers IS 'What was answered for each transaction, and what a challenger would have said.';
COMMENT ON COLUMN service.answers.transaction_id IS 'The transaction.';
COMMENT ON COLUMN service.answers.role IS 'champion: this was the answer; challenger: scored in shadow.';
COMMENT ON COLUMN service.answers.account_id IS 'Account of the transaction.';
COMMENT ON COLUMN service.answers.counterparty_id IS 'The other side, if known.';
COMMENT ON COLUMN service.answers.entity_id IS 'Institution of the account.';
COMMENT ON COLUMN service.answers.booked_at IS 'When it was booked.';
COMMENT ON COLUMN service.answers.known_at IS 'When it became known to the pipeline or the service.';
COMMENT ON COLUMN service.answers.amount_base IS 'Amount in the base currency.';
COMMENT ON COLUMN service.answers.score IS 'Score of the ensemble; higher is more anomalous.';
COMMENT ON COLUMN service.answers.probability IS 'Calibrated probability of an anomaly.';
COMMENT ON COLUMN service.answers.is_alert IS 'Whether the score reaches the threshold of that model.';
COMMENT ON COLUMN service.answers.members IS 'What each detector adds to the margin of the ensemble.';
COMMENT ON COLUMN service.answers.reasons IS 'KPIs with value, unit and contribution, largest first.';
COMMENT ON COLUMN service.answers.model_version IS 'Version of the model in the registry that answered.';
COMMENT ON COLUMN service.answers.data_version IS 'Version of the data that the model was trained on.';
COMMENT ON COLUMN service.answers.sequence IS 'Event in the journal that the transaction came with.';
COMMENT ON COLUMN service.answers.request_id IS 'Request or job that it came with.';
COMMENT ON COLUMN service.answers.answered_at IS 'When it was written.';

CREATE TABLE service.responses (
    key_id text NOT NULL,
    idempotency_key text NOT NULL,
    request_sha256 text NOT NULL,
    status integer NOT NULL,
    body bytea NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (key_id, idempotency_key)
);
ALTER TABLE service.responses ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE INDEX responses_by_time ON service.responses (at);

COMMENT ON TABLE service.responses IS
    'Answers as they were sent, byte for byte, for requests that are repeated with the same idempotency key.';
COMMENT ON COLUMN service.responses.key_id IS 'API key of the client: clients do not see each other''s answers.';
COMMENT ON COLUMN service.responses.idempotency_key IS 'What the client called its request.';
COMMENT ON COLUMN service.responses.request_sha256 IS 'SHA-256 of method, path and body: another request is refused.';
COMMENT ON COLUMN service.responses.status IS 'HTTP status.';
COMMENT ON COLUMN service.responses.body IS 'Body of the answer, compressed with zstd.';
COMMENT ON COLUMN service.responses.at IS 'When it was written.';
