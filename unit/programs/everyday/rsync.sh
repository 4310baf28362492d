# needs: rsync
# ports: 873
serve() {
    mkdir -p "$D/module/deep"
    cp "$D/payload" "$D/module/deep/payload"
    for n in $(seq 200); do echo "file $n" >"$D/module/$n"; done
    printf 'use chroot = no\nuid = root\ngid = root\nlock file = %s\n[all]\npath = %s\nread only = no\n' "$D/lock" "$D/module" >"$D/rsyncd.conf"
    exec rsync --daemon --no-detach --config="$D/rsyncd.conf" --log-file="$D/rsync.log"
}
ask() {
    for ip in $ips; do
        rsync "rsync://$ip/" | tr -d ' \t'
        rsync -a "rsync://$ip/all/" tree
        find tree -type f | wc -l
        same tree/deep/payload
        echo "changed" >>tree/7
        # A file changed within the second it was made in has the same time.
        touch -d 2001-02-03 tree/7
        rsync -a --itemize-changes tree/ "rsync://$ip/all/"
        rsync -a --itemize-changes tree/ "rsync://$ip/all/"
        rm -r tree
    done
}
