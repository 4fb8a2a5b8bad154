"""Reproducible, audit-ready detection of anomalies in financial transactions and regulatory filings."""

__version__ = "0.1.0"
