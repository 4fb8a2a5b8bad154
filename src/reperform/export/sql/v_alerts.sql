SELECT
    a.rank AS alert_rank,
    a.transaction_id,
    a.booked_at,
    a.entity_id,
    a.account_id,
    a.counterparty_id,
    t.direction,
    t.amount,
    t.currency,
    a.amount_base,
    t.channel,
    t.country,
    a.score,
    a.probability,
    reasons.top_reasons,
    a.is_anomaly,
    a.typology,
    l.is_anomaly AS confirmed_anomaly,
    l.confirmed_at,
    t.source_file,
    t.source_record
FROM alerts AS a
LEFT JOIN transactions AS t USING (transaction_id)
LEFT JOIN labels AS l USING (transaction_id)
LEFT JOIN (
    SELECT
        transaction_id,
        string_agg(
            format('%s = %s (%s)', feature, coalesce(round(value::numeric, 4)::text, 'unknown'),
                   to_char(contribution, 'FMSG999999990.000')),
            '; ' ORDER BY rank
        ) AS top_reasons
    FROM attributions
    WHERE method = 'shap' AND rank <= 3
    GROUP BY transaction_id
) AS reasons USING (transaction_id)
ORDER BY a.rank
