#!/usr/bin/env bash
# Back up what cannot be made again:   deploy/backup.sh FOLDER
#
# FOLDER/<time, UTC>/ then holds
#   reperform.dump   schemas service (answers, keys, jobs, alerts, labels, log of calls) and reperform (exported results)
#   calls.jsonl      the log of calls, as tools/verify.py reads it
#   mlflow.*         the registry of models: mlflow.db, or a dump where MLFLOW_DATABASE_URL names its PostgreSQL database
#   project/         dvc.lock, params.yaml and the audited log of runs, which name every file of data by its hash
#   about.txt        what was backed up, and with what
#   SHA256SUMS       of all of these
# The files of data themselves are in DVC's cache: `dvc push` copies them to a remote of your own.
#
# Run it in the project's folder, while the service runs. The database is the one that `python -m reperform` uses:
# REPERFORM_DATABASE_URL, else the embedded server.
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "usage: deploy/backup.sh FOLDER" >&2
    exit 2
fi
if [ ! -f dvc.yaml ]; then
    echo "backup: run this in the project's folder (the one with dvc.yaml)" >&2
    exit 2
fi

# Everything below runs with the address in libpq's variables, and the embedded server up from the first line to the last.
if [ -z "${REPERFORM_REACHED:-}" ]; then
    REPERFORM_REACHED=yes exec python -m reperform database -- bash "$0" "$@"
fi

umask 077 # a backup holds transactions and hashes of keys
stamp=$(date -u +%Y%m%dT%H%M%SZ)
target=$1/$stamp
made=$1/.$stamp.unfinished
mkdir -p "$made/project"
trap 'rm -rf "$made"' EXIT # an interrupted backup leaves nothing that looks like one

ask() { psql --no-psqlrc --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 --command "$1"; }

if [ "$(ask "SELECT count(*) FROM pg_namespace WHERE nspname = 'service'")" != 1 ]; then
    echo "backup: this database holds no schema 'service'; nothing was written" >&2
    exit 1
fi
schemas=(--schema=service)
if [ "$(ask "SELECT count(*) FROM pg_namespace WHERE nspname = 'reperform'")" = 1 ]; then
    schemas+=(--schema=reperform)
fi

# The log comes first: what the dump holds then begins with it, byte for byte, and restore.sh checks that.
python -m reperform calls --to "$made/calls.jsonl"
python tools/verify.py --root . --calls "$made/calls.jsonl" || {
    echo "backup: the log of calls does not hold together (see above); the backup goes on, and keeps what there is" >&2
}
pg_dump --format=custom --no-owner "${schemas[@]}" --file "$made/reperform.dump"
pg_restore --list "$made/reperform.dump" > "$made/contents.txt"

if [ -n "${MLFLOW_DATABASE_URL:-}" ]; then
    (
        unset "${!PG@}"
        REPERFORM_DATABASE_URL=$MLFLOW_DATABASE_URL \
            python -m reperform database -- pg_dump --format=custom --no-owner --file "$made/mlflow.dump"
    )
elif [ -f mlflow.db ]; then
    # SQLite's own way to copy a database that is being written.
    python -c 'import sqlite3, sys
source, copy = (sqlite3.connect(name) for name in sys.argv[1:])
source.backup(copy)
copy.close()' mlflow.db "$made/mlflow.db"
else
    echo "backup: no registry of models here (mlflow.db), and MLFLOW_DATABASE_URL is not set: none is backed up" >&2
fi

for file in dvc.lock params.yaml data/audit/log.jsonl data/audit/manifest.json; do
    if [ -f "$file" ]; then
        cp "$file" "$made/project/"
    fi
done

{
    echo "at: $stamp"
    echo "program: $(python -m reperform --version)"
    echo "server: $(ask 'SHOW server_version')"
    echo "calls: $(wc -l < "$made/calls.jsonl")"
    if [ -f dvc.lock ]; then
        echo "dvc.lock: $(sha256sum dvc.lock | cut -d ' ' -f 1)"
    fi
} > "$made/about.txt"

sums=$(cd "$made" && find . -type f -print0 | sort -z | xargs -0 sha256sum)
echo "$sums" > "$made/SHA256SUMS"
sync -f "$made"
mv "$made" "$target"
trap - EXIT
echo "backup: $target"
