"""Read CSV, ISO 20022 and XBRL into canonical tables."""
