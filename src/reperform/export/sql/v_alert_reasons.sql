SELECT
    a.rank AS alert_rank,
    a.transaction_id,
    r.detector,
    r.method,
    r.rank AS reason_rank,
    r.feature,
    d.kpi_number,
    d.kpi,
    r.value,
    d.unit,
    r.contribution,
    d.formula
FROM alerts AS a
JOIN attributions AS r USING (transaction_id)
LEFT JOIN feature_dictionary AS d ON d.name = r.feature
ORDER BY a.rank, r.detector, r.method DESC, r.rank
