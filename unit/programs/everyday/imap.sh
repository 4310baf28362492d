# needs: dovecot curl
# ports: 143 110
serve() {
    mkdir -p "$D/mail" /run/dovecot
    chown nobody "$D/mail"
    cat >"$D/dovecot.conf" <<CONF
protocols = imap pop3
base_dir = /run/dovecot
state_dir = /run/dovecot
log_path = $D/dovecot.log
ssl = no
disable_plaintext_auth = no
mail_location = maildir:$D/mail/box
first_valid_uid = 1
passdb {
  driver = static
  args = password=secret
}
userdb {
  driver = static
  args = uid=nobody gid=nogroup home=$D/mail
}
CONF
    exec dovecot -F -c "$D/dovecot.conf"
}
ask() {
    (printf 'From: a@example.org\r\nSubject: long\r\n\r\n'; head -c 1000000 "$D/payload" | base64 | sed 's/$/\r/') >mail
    for ip in $ips; do
        curl -sS -u me:secret -T mail "imap://$ip/INBOX" 2>&1
        curl -sS -u me:secret "imap://$ip/INBOX;MAILINDEX=1" | md5sum
        curl -sS -u me:secret "imap://$ip/INBOX" -X 'STORE 1 +FLAGS \Flagged' | tr -d '\r'
        curl -sS -u me:secret "pop3://$ip/1" | tr -d '\r' | md5sum
        curl -sS -u me:wrong "imap://$ip/INBOX" 2>&1 || echo "status $?"
    done
}
