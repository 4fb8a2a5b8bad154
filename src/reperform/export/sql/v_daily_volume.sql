SELECT
    (t.booked_at AT TIME ZONE 'UTC')::date AS day,
    t.entity_id,
    count(*) AS n_transactions,
    count(*) FILTER (WHERE t.direction = 'in') AS n_in,
    count(*) FILTER (WHERE t.direction = 'out') AS n_out,
    sum(t.amount_base) AS amount_base,
    count(a.transaction_id) AS n_alerts,
    count(*) FILTER (WHERE l.is_anomaly) AS n_confirmed_anomalies
FROM transactions AS t
LEFT JOIN alerts AS a USING (transaction_id)
LEFT JOIN labels AS l USING (transaction_id)
GROUP BY 1, 2
ORDER BY 1, 2
