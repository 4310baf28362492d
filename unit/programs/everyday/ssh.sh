# needs: sshd ssh scp sftp rsync
# ports: 22
serve() {
    mkdir -p /run/sshd
    ssh-keygen -q -t ed25519 -N '' -f "$D/host"
    ssh-keygen -q -t ed25519 -N '' -f "$D/id"
    cp "$D/id.pub" "$D/authorized"
    cat >"$D/sshd_config" <<CONF
HostKey $D/host
AuthorizedKeysFile $D/authorized
PermitRootLogin yes
StrictModes no
UsePAM no
Subsystem sftp internal-sftp
CONF
    exec /usr/sbin/sshd -D -e -f "$D/sshd_config" 2>"$D/sshd.log"
}
ask() {
    mkdir -p .ssh
    cat >config <<CONF
Host *
  IdentityFile $D/id
  StrictHostKeyChecking no
  UserKnownHostsFile $PWD/known
  LogLevel ERROR
  User root
CONF
    for ip in $V4 $V6; do
        case $ip in *:*) at="[$ip]" ;; *) at=$ip ;; esac
        ssh -F config "$ip" 'echo "hello from $(echo $SSH_CONNECTION | cut -d" " -f3,4)"; exit 7' || echo "status $?"
        ssh -F config "$ip" cat <"$D/payload" | same
        # A terminal, and small segments both ways.
        for n in 1 2 3 4 5 6 7 8 9; do echo "line $n"; sleep 0.02; done | ssh -F config "$ip" 'while read line; do echo "got $line"; done'
        scp -q -F config "$D/payload" "root@$at:$D/up" && same "$D/up"
        scp -q -F config "root@$at:$D/payload" down && same down
        printf 'get %s/payload sftped\nput sftped %s/put\n' "$D" "$D" | sftp -q -b - -F config "root@$at" >said && same sftped "$D/put"
        rsync -e 'ssh -F config' "root@$at:$D/payload" synced && same synced
        # A tunnel.
        ssh -F config -J "root@$at" 127.0.0.1 'echo through a tunnel'
        rm -f "$D/up" "$D/put" down sftped synced
    done
}
