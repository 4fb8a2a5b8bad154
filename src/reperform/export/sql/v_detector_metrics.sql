SELECT
    m.detector,
    m.metric,
    m.estimate,
    m.low,
    m.high,
    m.n,
    rules.estimate AS rules_estimate,
    m.estimate - rules.estimate AS above_rules
FROM metrics AS m
LEFT JOIN metrics AS rules ON rules.detector = 'rules' AND rules.metric = m.metric
ORDER BY m.metric, m.detector
