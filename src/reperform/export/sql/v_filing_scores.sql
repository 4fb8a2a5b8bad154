SELECT
    f.filing_id,
    f.entity_id,
    f.form,
    f.period_end,
    f.due_at,
    f.filed_at,
    k.timeliness_days,
    s.split,
    s.score,
    s.probability,
    s.is_alert,
    k.completeness,
    k.n_required,
    k.n_present,
    k.consistency,
    k.n_evaluable,
    k.n_rules,
    k.severity,
    broken.n_broken_rules,
    broken.largest_gap,
    f.source_file
FROM filings AS f
LEFT JOIN filing_scores AS s USING (filing_id)
LEFT JOIN filing_kpis AS k USING (filing_id)
LEFT JOIN (
    SELECT filing_id, count(*) AS n_broken_rules, max(abs(gap)) AS largest_gap
    FROM filing_checks
    WHERE is_evaluable AND NOT is_satisfied
    GROUP BY filing_id
) AS broken USING (filing_id)
ORDER BY s.score DESC NULLS LAST, f.filing_id
