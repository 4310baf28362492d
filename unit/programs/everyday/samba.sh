# needs: smbd smbclient
# ports: 445
serve() {
    mkdir -p "$D/share" "$D/smb"
    chmod 777 "$D/share"
    cp "$D/payload" "$D/share/payload"
    cat >"$D/smb.conf" <<CONF
[global]
  private dir = $D/smb
  lock directory = $D/smb
  state directory = $D/smb
  cache directory = $D/smb
  pid directory = $D/smb
  ncalrpc dir = $D/smb/rpc
  log file = $D/smb/log
  map to guest = bad user
  disable spoolss = yes
  load printers = no
  smb ports = 445
[all]
  path = $D/share
  guest ok = yes
  read only = no
CONF
    exec smbd -F --no-process-group -s "$D/smb.conf" >"$D/smbd.out" 2>&1
}
ask() {
    printf '[global]\n' >smb.conf
    for ip in $V4 $V6; do
        rm -f got
        smbclient -s smb.conf -N "//$ip/all" -c 'get payload got; put got up; ls up' 2>&1 |
            grep -oE '^ +up +[AN]+ +[0-9]+|NT_STATUS.*' || true
        same got "$D/share/up"
        smbclient -s smb.conf -N "//$ip/all" -c 'del up; mkdir deep; cd deep; ls ..\none' 2>&1 | grep -oE 'NT_STATUS[A-Z_]*' || true
    done
}
