# needs: mariadbd mariadb mariadb-install-db
# ports: 3306
serve() {
    mkdir -p /run/mysqld
    small="--no-defaults --user=root --innodb-use-native-aio=0 --datadir=$D/maria --innodb-buffer-pool-size=16M --innodb-log-file-size=4M --aria-log-file-size=8M"
    mariadb-install-db $small --skip-test-db --auth-root-authentication-method=normal >"$D/install.log" 2>&1 || cat "$D/install.log"
    exec mariadbd $small --skip-grant-tables --bind-address="*" --skip-name-resolve --socket="$D/maria.sock" 2>"$D/maria.log"
}
ask() {
    for ip in $V4 $V6; do
        ask="mariadb --no-defaults -h $ip -N -B"
        $ask -e 'select 6 * 7'
        $ask -e 'create database big'
        (echo 'create table rows_ (n int primary key, text varchar(40));'
            seq 2000 | sed "s/.*/insert into rows_ values (&, 'row &');/") | $ask big
        $ask big -e 'select count(*), sum(n) from rows_'
        $ask big -e 'select * from rows_ order by n' | md5sum
        $ask big -e 'select no_such_column from rows_' 2>&1 || echo "status $?"
        $ask -e 'drop database big'
    done
}
