# needs: slapd ldapsearch ldapadd
# ports: 389
serve() {
    mkdir -p "$D/ldap"
    cat >"$D/slapd.conf" <<CONF
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile $D/slapd.pid
sizelimit unlimited
database mdb
suffix "dc=example"
rootdn "cn=admin,dc=example"
rootpw secret
directory $D/ldap
maxsize 10485760
CONF
    exec slapd -d 0 -f "$D/slapd.conf" -h "ldap:///"
}
ask() {
    admin="-x -D cn=admin,dc=example -w secret"
    printf 'dn: dc=example\nobjectClass: domain\ndc: example\n\n' >entries
    for n in $(seq 300); do
        printf 'dn: uid=u%s,dc=example\nobjectClass: inetOrgPerson\nuid: u%s\ncn: User %s\nsn: %s\n\n' "$n" "$n" "$n" "$n" >>entries
    done
    ldapadd $admin -H "ldap://$V4" -f entries | grep -c adding
    for ip in $ips; do
        ldapsearch -x -LLL -H "ldap://$ip" -b dc=example '(uid=u7)' cn
        ldapsearch -x -LLL -H "ldap://$ip" -b dc=example '(objectClass=inetOrgPerson)' cn | md5sum
        ldapsearch -x -D cn=admin,dc=example -w wrong -H "ldap://$ip" -b dc=example 2>&1 || echo "status $?"
    done
}
