# needs: psql
# ports: 5432
serve() {
    bin=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)
    mkdir "$D/pg"
    chown postgres "$D/pg"
    cd "$D/pg"
    as="setpriv --reuid=postgres --regid=postgres --clear-groups"
    $as "$bin/initdb" -D "$D/pg/data" -A trust --no-sync -E UTF8 --locale=C >"$D/initdb.log"
    echo "host all all all trust" >>"$D/pg/data/pg_hba.conf"
    exec $as "$bin/postgres" -D "$D/pg/data" -c listen_addresses='*' -c unix_socket_directories='' -c fsync=off 2>"$D/pg.log"
}
ask() {
    for ip in $V4 $V6; do
        ask="psql -h $ip -U postgres -qAtX"
        $ask -c 'select 6 * 7'
        $ask -c 'create table big (n int, text text)'
        seq 20000 | sed 's/.*/&\trow &/' | $ask -c 'copy big from stdin'
        $ask -c 'select count(*), sum(n), md5(string_agg(text, chr(10) order by n)) from big'
        $ask -c 'copy (select * from big order by n) to stdout' | md5sum
        $ask -c 'select no_such_column from big' 2>&1 || echo "status $?"
        $ask -c 'drop table big'
        bin=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)
        "$bin/pgbench" -h "$ip" -U postgres -i -q -s 1 postgres >/dev/null 2>&1
        "$bin/pgbench" -h "$ip" -U postgres -n -c 8 -t 20 postgres 2>&1 | grep -E '^number of (clients|transactions actually|failed)'
    done
}
