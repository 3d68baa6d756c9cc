# Makes the database of the first start, as the real image does, and runs the server as the user postgres.
set -eu
data=/var/lib/postgresql/data
chown postgres:postgres "$data"
chmod 700 "$data"
as_postgres() { setpriv --reuid postgres --regid postgres --init-groups "$@"; }
if [ ! -s "$data/PG_VERSION" ]; then
    password=$(mktemp)
    cp "$POSTGRES_PASSWORD_FILE" "$password"
    chown postgres "$password"
    as_postgres initdb -D "$data" --username "$POSTGRES_USER" --pwfile "$password" \
        --auth-local trust --auth-host scram-sha-256 --encoding UTF8
    rm "$password"
    echo "host all all all scram-sha-256" >>"$data/pg_hba.conf"
    if [ "$POSTGRES_DB" != postgres ]; then
        echo "CREATE DATABASE \"$POSTGRES_DB\"" | as_postgres postgres --single -D "$data" postgres
    fi
fi
exec setpriv --reuid postgres --regid postgres --init-groups postgres -D "$data" -c listen_addresses='*' -c unix_socket_directories=/tmp,/var/run/postgresql
