"""Tables that report templates need and no stage writes as such: joins and selections of outputs, no new numbers."""
