# needs: vsftpd curl lftp tnftp
# ports: 21
serve() {
    mkdir -p "$D/ftp/in" /run/vsftpd/empty
    cp "$D/payload" "$D/ftp/payload"
    chown ftp "$D/ftp/in"
    cat >"$D/vsftpd.conf" <<CONF
listen=NO
listen_ipv6=YES
background=NO
anonymous_enable=YES
anon_root=$D/ftp
anon_upload_enable=YES
anon_umask=022
write_enable=YES
ftp_username=ftp
secure_chroot_dir=/run/vsftpd/empty
isolate_network=NO
seccomp_sandbox=NO
xferlog_enable=NO
pasv_min_port=30000
pasv_max_port=30100
CONF
    # Not as the first process of a PID namespace, which gets children that it does not know.
    vsftpd "$D/vsftpd.conf"
}
ask() {
    n=0
    for ip in $ips; do
        # Passive: the client opens the connection of the data; EPSV and PASV.
        curl -sS "ftp://$ip/payload" | same
        curl -sS --disable-epsv "ftp://$ip/payload" | same
        # Active: the server does; EPRT and PORT.
        curl -sS -P - "ftp://$ip/payload" | same
        [ "$ip" != "$V4" ] || curl -sS -P - --disable-eprt "ftp://$ip/payload" | same
        for how in --disable-epsv "-P -"; do
            n=$((n + 1))
            curl -sS $how -T "$D/payload" "ftp://$ip/in/up$n" && same "$D/ftp/in/up$n"
        done
        curl -sS -l "ftp://$ip/"
        for passive in true false; do
            lftp -c "set ftp:passive-mode $passive; set net:max-retries 1; set net:timeout 9; open $ip; get payload -o lftp-$passive; ls" | wc -l
            same "lftp-$passive"
            rm "lftp-$passive"
        done
    done
    printf 'user anonymous none\nbinary\nget payload tn\nquit\n' | tnftp -n -V "$V4" && same tn
    printf 'user anonymous none\nbinary\npassive off\nget payload tna\nquit\n' | tnftp -n -V "$V4" && same tna
}
