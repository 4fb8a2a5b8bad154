#!/usr/bin/env bash
# Put a backup back:   deploy/restore.sh BACKUP [--replace]
#
# BACKUP is a folder that deploy/backup.sh made. Stop the service first; this refuses while it is connected. Where the
# database holds a schema `service` already, nothing happens without --replace, which keeps the old one under another
# name until the new one has been checked.
#
# The log of calls is checked twice: its chain of hashes, and that it begins with the log that lies beside the dump.
set -euo pipefail

replace=no
backup=
for word in "$@"; do
    case $word in
        --replace) replace=yes ;;
        -*) echo "restore: unknown option $word" >&2; exit 2 ;;
        *) backup=$word ;;
    esac
done
if [ -z "$backup" ] || [ ! -f "$backup/reperform.dump" ]; then
    echo "usage: deploy/restore.sh BACKUP [--replace]     BACKUP is a folder that deploy/backup.sh made" >&2
    exit 2
fi
if [ ! -f dvc.yaml ]; then
    echo "restore: run this in the project's folder (the one with dvc.yaml)" >&2
    exit 2
fi
if [ -z "${REPERFORM_REACHED:-}" ]; then # the address in libpq's variables, the embedded server up until the end
    REPERFORM_REACHED=yes exec python -m reperform database -- bash "$0" "$@"
fi
umask 077
export PGOPTIONS="${PGOPTIONS:-} -c client_min_messages=warning"

(cd "$backup" && sha256sum --check --quiet --strict SHA256SUMS) || {
    echo "restore: the backup is not what was written; nothing was changed" >&2
    exit 1
}

ask() { psql --no-psqlrc --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 --command "$1"; }
has() { [ "$(ask "SELECT count(*) FROM pg_namespace WHERE nspname = '$1'")" = 1 ]; }
holds() { grep -qE "SCHEMA - $1 " "$backup/contents.txt"; }

others=$(ask "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'reperform%'")
if [ "$others" != 0 ]; then
    echo "restore: $others connections of the service are open. Stop every replica first; nothing was changed" >&2
    exit 1
fi
schemas=()
for schema in service reperform; do
    if holds "$schema"; then schemas+=("$schema"); fi
done
for schema in "${schemas[@]}"; do
    if has "$schema" && [ "$replace" = no ]; then
        echo "restore: this database has a schema '$schema' already. Say --replace to put the backup in its place; nothing was changed" >&2
        exit 1
    fi
done

# Rights in the dump name the role that may only read; where it is new, it is made as stage export makes it.
ask "DO \$\$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'reperform_reader') THEN
        CREATE ROLE reperform_reader LOGIN;
        GRANT reperform_reader TO CURRENT_USER;
        ALTER ROLE reperform_reader SET search_path = reperform;
        ALTER ROLE reperform_reader SET default_transaction_read_only = on;
    END IF;
END \$\$"

kept=()
give_back() { # whatever fails from here on leaves the database as it was
    for schema in "${kept[@]}"; do
        ask "BEGIN; DROP SCHEMA IF EXISTS $schema CASCADE; ALTER SCHEMA ${schema}_before_restore RENAME TO $schema; COMMIT"
    done
    echo "restore: nothing was changed" >&2
}
trap give_back EXIT
for schema in "${schemas[@]}"; do
    if has "$schema"; then
        ask "DROP SCHEMA IF EXISTS ${schema}_before_restore CASCADE; ALTER SCHEMA $schema RENAME TO ${schema}_before_restore"
        kept+=("$schema")
    fi
done
pg_restore --single-transaction --exit-on-error --no-owner --dbname="$PGDATABASE" "$backup/reperform.dump"
ask ANALYZE

calls=$(mktemp)
python -m reperform calls --to "$calls"
python tools/verify.py --root . --without-log --calls "$calls"
head -c "$(stat --format=%s "$backup/calls.jsonl")" "$calls" | cmp --quiet - "$backup/calls.jsonl" || {
    echo "restore: the restored log of calls does not begin with the one beside the dump" >&2
    exit 1
}
# Ends of the log that were kept after this backup was made are gone with what was answered since. That is told now, and
# by every later check: a log that lost its end cannot be made whole by restoring it.
python tools/verify.py --root . --calls "$calls" > /dev/null || {
    echo "restore: calls that were answered after this backup are lost; write down when and why, and keep this output" >&2
}
rm -f "$calls"
trap - EXIT
for schema in "${kept[@]}"; do
    ask "DROP SCHEMA ${schema}_before_restore CASCADE"
done

if [ -f "$backup/mlflow.dump" ] && [ -n "${MLFLOW_DATABASE_URL:-}" ]; then
    (
        unset "${!PG@}"
        # shellcheck disable=SC2016  # expanded inside, where the address is known
        REPERFORM_DATABASE_URL=$MLFLOW_DATABASE_URL python -m reperform database -- bash -c \
            'pg_restore --single-transaction --exit-on-error --no-owner --clean --if-exists --dbname="$PGDATABASE" "$1"' \
            restore "$backup/mlflow.dump"
    )
elif [ -f "$backup/mlflow.db" ]; then
    if [ -f mlflow.db ] && [ "$replace" = no ]; then
        echo "restore: mlflow.db is there already and stays; the backup's is $backup/mlflow.db" >&2
    else
        cp "$backup/mlflow.db" .mlflow.db.tmp
        mv .mlflow.db.tmp mlflow.db
    fi
fi

if [ -f "$backup/project/dvc.lock" ] && ! cmp --quiet dvc.lock "$backup/project/dvc.lock"; then
    echo "restore: dvc.lock differs from the backup's: the data here are another run's. To bring those back:" >&2
    echo "    cp $backup/project/dvc.lock $backup/project/params.yaml . && dvc checkout     (dvc pull, if the cache is gone)" >&2
fi
echo "restore: $(ask 'SELECT count(*) FROM service.answers') answers, $(ask 'SELECT count(*) FROM service.api_keys') keys, $(ask 'SELECT count(*) FROM service.calls') calls"
