# needs: svnserve svn
# ports: 3690
serve() {
    svnadmin create "$D/svn"
    printf '[general]\nanon-access = write\n' >"$D/svn/conf/svnserve.conf"
    exec svnserve -d --foreground --prefer-ipv6 --listen-host :: -r "$D"
}
ask() {
    n=0
    for ip in $ips; do
        n=$((n + 1))
        svn checkout -q "svn://$ip/svn" tree
        cp "$D/payload" "tree/payload$n"
        svn add -q "tree/payload$n"
        svn commit -m "the payload" tree | grep -v '^Transmitting'
        svn export -q "svn://$ip/svn/payload$n" got
        same got
        rm -rf tree got
    done
}
