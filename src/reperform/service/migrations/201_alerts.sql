-- Alerts, and the messages that tell of them.

CREATE TABLE service.alerts (
    alert_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    transaction_id text NOT NULL,
    model_version integer NOT NULL,
    account_id text NOT NULL,
    counterparty_id text,
    entity_id text NOT NULL,
    booked_at timestamptz NOT NULL,
    known_at timestamptz NOT NULL,
    amount_base double precision NOT NULL,
    score double precision NOT NULL,
    probability double precision,
    reasons jsonb,
    data_version text NOT NULL,
    raised_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (transaction_id, model_version)
);
CREATE INDEX alerts_by_account ON service.alerts (account_id, known_at);

COMMENT ON TABLE service.alerts IS 'Alerts that the service has raised.';
COMMENT ON COLUMN service.alerts.alert_id IS 'Number of the alert, in the order in which alerts were raised; with gaps.';
COMMENT ON COLUMN service.alerts.transaction_id IS 'The transaction.';
COMMENT ON COLUMN service.alerts.model_version IS 'Version of the model in the registry that raised it.';
COMMENT ON COLUMN service.alerts.account_id IS 'Account of the transaction.';
COMMENT ON COLUMN service.alerts.counterparty_id IS 'The other side, if known.';
COMMENT ON COLUMN service.alerts.entity_id IS 'Institution of the account.';
COMMENT ON COLUMN service.alerts.booked_at IS 'When the transaction was booked.';
COMMENT ON COLUMN service.alerts.known_at IS 'When it became known.';
COMMENT ON COLUMN service.alerts.amount_base IS 'Amount in the base currency.';
COMMENT ON COLUMN service.alerts.score IS 'Score of the ensemble; higher is more anomalous.';
COMMENT ON COLUMN service.alerts.probability IS 'Calibrated probability of an anomaly.';
COMMENT ON COLUMN service.alerts.reasons IS 'KPIs with value, unit and contribution, largest first.';
COMMENT ON COLUMN service.alerts.data_version IS 'Version of the data that the model was trained on.';
COMMENT ON COLUMN service.alerts.raised_at IS 'When it was written.';

CREATE TABLE service.deliveries (
    delivery_id text PRIMARY KEY,
    alert_id bigint NOT NULL REFERENCES service.alerts ON DELETE CASCADE,
    receiver text NOT NULL,
    body text NOT NULL,
    status text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'delivered', 'dead')),
    attempts integer NOT NULL DEFAULT 0,
    next_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    worker text,
    last_error text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    UNIQUE (alert_id, receiver)
);
CREATE INDEX deliveries_due ON service.deliveries (receiver, next_at) WHERE status = 'open';
CREATE INDEX deliveries_dead ON service.deliveries (created_at) WHERE status = 'dead';

COMMENT ON TABLE service.deliveries IS 'Messages about alerts: one for each alert and receiver.';
COMMENT ON COLUMN service.deliveries.delivery_id IS 'Name of the message: the same in every attempt.';
COMMENT ON COLUMN service.deliveries.alert_id IS 'The alert.';
COMMENT ON COLUMN service.deliveries.receiver IS 'Name of the receiver in conf/serve/.';
COMMENT ON COLUMN service.deliveries.body IS 'Body as it is sent, byte for byte the same in every attempt.';
COMMENT ON COLUMN service.deliveries.status IS 'open; delivered; dead: given up until somebody asks for it again.';
COMMENT ON COLUMN service.deliveries.attempts IS 'Attempts so far; after the last one it is dead.';
COMMENT ON COLUMN service.deliveries.next_at IS
    'When it may be tried next; while it is under way, when others may take it over.';
COMMENT ON COLUMN service.deliveries.worker IS 'Who has it under way.';
COMMENT ON COLUMN service.deliveries.last_error IS 'Why the last attempt failed.';
COMMENT ON COLUMN service.deliveries.created_at IS 'When the alert was raised.';
COMMENT ON COLUMN service.deliveries.ended_at IS 'When it was delivered or given up.';

CREATE VIEW service.v_service_alerts AS
SELECT a.alert_id, a.transaction_id, a.account_id, a.counterparty_id, a.entity_id, a.booked_at, a.known_at,
    a.amount_base, a.score, a.probability, a.reasons, a.model_version, a.data_version, a.raised_at,
    count(d.receiver) AS n_receivers,
    count(*) FILTER (WHERE d.status = 'delivered') AS n_delivered,
    count(*) FILTER (WHERE d.status = 'open') AS n_open,
    count(*) FILTER (WHERE d.status = 'dead') AS n_dead,
    jsonb_object_agg(d.receiver, d.status) FILTER (WHERE d.receiver IS NOT NULL) AS deliveries
FROM service.alerts AS a LEFT JOIN service.deliveries AS d USING (alert_id)
GROUP BY a.alert_id;
COMMENT ON VIEW service.v_service_alerts IS 'Alerts of the service, and how far the messages about them are.';

CREATE VIEW service.v_open_deliveries AS
SELECT d.delivery_id, d.receiver, d.status, d.attempts, d.next_at, d.last_error, d.created_at, d.ended_at,
    a.transaction_id, a.entity_id
FROM service.deliveries AS d JOIN service.alerts AS a USING (alert_id)
WHERE d.status <> 'delivered';
COMMENT ON VIEW service.v_open_deliveries IS 'Messages that have not arrived: open, or dead with the last error.';
COMMENT ON COLUMN service.v_service_alerts.alert_id IS 'Number of the alert, in the order in which alerts were raised; with gaps.';
COMMENT ON COLUMN service.v_service_alerts.transaction_id IS 'The transaction.';
COMMENT ON COLUMN service.v_service_alerts.model_version IS 'Version of the model in the registry that raised it.';
COMMENT ON COLUMN service.v_service_alerts.account_id IS 'Account of the transaction.';
COMMENT ON COLUMN service.v_service_alerts.counterparty_id IS 'The other side, if known.';
COMMENT ON COLUMN service.v_service_alerts.entity_id IS 'Institution of the account.';
COMMENT ON COLUMN service.v_service_alerts.booked_at IS 'When the transaction was booked.';
COMMENT ON COLUMN service.v_service_alerts.known_at IS 'When it became known.';
COMMENT ON COLUMN service.v_service_alerts.amount_base IS 'Amount in the base currency.';
COMMENT ON COLUMN service.v_service_alerts.score IS 'Score of the ensemble; higher is more anomalous.';
COMMENT ON COLUMN service.v_service_alerts.probability IS 'Calibrated probability of an anomaly.';
COMMENT ON COLUMN service.v_service_alerts.reasons IS 'KPIs with value, unit and contribution, largest first.';
COMMENT ON COLUMN service.v_service_alerts.data_version IS 'Version of the data that the model was trained on.';
COMMENT ON COLUMN service.v_service_alerts.raised_at IS 'When it was written.';
COMMENT ON COLUMN service.v_service_alerts.n_receivers IS 'To how many receivers it goes.';
COMMENT ON COLUMN service.v_service_alerts.n_delivered IS 'How many of them have it.';
COMMENT ON COLUMN service.v_service_alerts.n_open IS 'How many messages are still to be sent.';
COMMENT ON COLUMN service.v_service_alerts.n_dead IS 'How many messages were given up.';
COMMENT ON COLUMN service.v_service_alerts.deliveries IS 'Receiver to open, delivered or dead.';
COMMENT ON COLUMN service.v_open_deliveries.delivery_id IS 'Name of the message.';
COMMENT ON COLUMN service.v_open_deliveries.receiver IS 'Name of the receiver in conf/serve/.';
COMMENT ON COLUMN service.v_open_deliveries.status IS 'open; dead: given up until somebody asks for it again.';
COMMENT ON COLUMN service.v_open_deliveries.attempts IS 'Attempts so far.';
COMMENT ON COLUMN service.v_open_deliveries.next_at IS 'When it may be tried next.';
COMMENT ON COLUMN service.v_open_deliveries.last_error IS 'Why the last attempt failed.';
COMMENT ON COLUMN service.v_open_deliveries.created_at IS 'When the alert was raised.';
COMMENT ON COLUMN service.v_open_deliveries.ended_at IS 'When it was given up.';
COMMENT ON COLUMN service.v_open_deliveries.transaction_id IS 'The transaction.';
COMMENT ON COLUMN service.v_open_deliveries.entity_id IS 'Institution of the account.';
