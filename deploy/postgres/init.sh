#!/usr/bin/env bash
# Runs once, when the server's volume is empty: roles and databases. Passwords come from the environment and go to psql
# as variables, so that no other process sees them and no quote in them ends a statement.
set -euo pipefail

psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username="${POSTGRES_USER:-postgres}" --dbname=postgres <<'SQL'
\getenv owner_password REPERFORM_PASSWORD
\getenv reader_password READER_PASSWORD
\getenv mlflow_password MLFLOW_PASSWORD
CREATE ROLE reperform LOGIN PASSWORD :'owner_password';
CREATE ROLE reperform_reader LOGIN PASSWORD :'reader_password';
ALTER ROLE reperform_reader SET search_path = reperform;
ALTER ROLE reperform_reader SET default_transaction_read_only = on;
GRANT reperform_reader TO reperform;
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE DATABASE reperform OWNER reperform;
CREATE DATABASE mlflow OWNER mlflow;
REVOKE TEMPORARY ON DATABASE reperform FROM PUBLIC;
REVOKE CONNECT ON DATABASE mlflow FROM PUBLIC;
REVOKE CONNECT ON DATABASE reperform FROM PUBLIC;
GRANT CONNECT ON DATABASE reperform TO reperform_reader;
SQL
