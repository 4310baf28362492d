# needs: ganesha.nfsd nfs-ls nfs-cat
# ports: 2049
serve() {
    mkdir -p "$D/share" /run/ganesha
    cp "$D/payload" "$D/share/payload"
    chmod 777 "$D/share"
    cat >"$D/ganesha.conf" <<CONF
NFS_CORE_PARAM { Protocols = 4; NFS_Port = 2049; Enable_NLM = false; Enable_RQUOTA = false; }
NFSv4 { Graceless = true; RecoveryRoot = $D/recovery; }
EXPORT { Export_Id = 1; Path = $D/share; Pseudo = /share; Access_Type = RW; Squash = No_Root_Squash; SecType = sys; FSAL { Name = VFS; } }
CONF
    mkdir "$D/recovery"
    exec ganesha.nfsd -F -L "$D/ganesha.log" -f "$D/ganesha.conf" -p "$D/ganesha.pid"
}
ask() {
    nfs-ls "nfs://$V4/share?version=4" | tr -s ' '
    for n in 1 2; do
        nfs-cat "nfs://$V4/share/payload?version=4" | same
    done
    nfs-cat "nfs://$V4/share/none?version=4" >none 2>&1 || echo "status $?"
}
