-- What people have decided about transactions.

CREATE TABLE service.labels (
    label_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    transaction_id text NOT NULL,
    is_anomaly boolean NOT NULL,
    typology text,
    confirmed_at timestamptz NOT NULL,
    key_id text,
    sequence bigint NOT NULL,
    taken_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX labels_by_transaction ON service.labels (transaction_id, label_id DESC);

COMMENT ON TABLE service.labels IS 'Decisions about transactions, all of them: the last one of a transaction counts.';
COMMENT ON COLUMN service.labels.label_id IS 'Number of the decision; of two about one transaction the higher counts.';
COMMENT ON COLUMN service.labels.transaction_id IS 'The transaction.';
COMMENT ON COLUMN service.labels.is_anomaly IS 'Whether it was confirmed as an anomaly.';
COMMENT ON COLUMN service.labels.typology IS 'Of what kind, if that was said.';
COMMENT ON COLUMN service.labels.confirmed_at IS 'When it was decided: no score before it may know of it.';
COMMENT ON COLUMN service.labels.key_id IS 'API key of who told it.';
COMMENT ON COLUMN service.labels.sequence IS 'Event in the journal that it came with.';
COMMENT ON COLUMN service.labels.taken_at IS 'When it was written.';

CREATE VIEW service.v_labels AS
SELECT DISTINCT ON (transaction_id) transaction_id, is_anomaly, typology, confirmed_at, key_id, sequence, taken_at,
    count(*) OVER (PARTITION BY transaction_id) AS n_decisions
FROM service.labels
ORDER BY transaction_id, label_id DESC;
COMMENT ON VIEW service.v_labels IS 'The last decision about each transaction.';
COMMENT ON COLUMN service.v_labels.transaction_id IS 'The transaction.';
COMMENT ON COLUMN service.v_labels.is_anomaly IS 'Whether it was confirmed as an anomaly.';
COMMENT ON COLUMN service.v_labels.typology IS 'Of what kind, if that was said.';
COMMENT ON COLUMN service.v_labels.confirmed_at IS 'When it was decided: no score before it may know of it.';
COMMENT ON COLUMN service.v_labels.key_id IS 'API key of who told it.';
COMMENT ON COLUMN service.v_labels.sequence IS 'Event in the journal that it came with.';
COMMENT ON COLUMN service.v_labels.taken_at IS 'When it was written.';
COMMENT ON COLUMN service.v_labels.n_decisions IS 'How many decisions there have been about it.';
