# needs: exim4 swaks curl
# ports: 25
serve() {
    mkdir -p "$D/spool"
    chown -R Debian-exim "$D/spool"
    cat >"$D/exim.conf" <<CONF
primary_hostname = server.example
spool_directory = $D/spool
log_file_path = $D/spool/%slog
queue_only = true
acl_smtp_rcpt = rcpt
acl_smtp_data = data
message_size_limit = 10M
host_lookup =
smtp_accept_max_per_host = 100
domainlist local = example.net
begin acl
rcpt:
  accept domains = example.net
  deny message = no such domain
data:
  accept
begin routers
all:
  driver = redirect
  data = :blackhole:
CONF
    exec exim4 -bdf -oX 25 -C "$D/exim.conf"
}
ask() {
    quiet='s/id=[^ ]*/id=ID/; s/ESMTP Exim.*/ESMTP/; s/^=== Trying.*/=== Trying/'
    head -c 1000000 "$D/payload" | base64 >mail
    ask="swaks --server $V4 --helo client.example --from a@example.org --hide-informational"
    $ask --to b@example.net --body "hello" 2>&1 | grep -E '^<' | sed "$quiet"
    $ask --to b@elsewhere.example 2>&1 | grep -E '^<' | sed "$quiet" || true
    for ip in $ips; do
        (printf 'Subject: long\r\n\r\n'; cat mail) |
            curl -sS --crlf --mail-from a@example.org --mail-rcpt b@example.net -T - "smtp://$ip/client.example" && echo "sent"
    done
    # Several messages over one connection.
    printf 'EHLO client.example\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nRSET\r\nQUIT\r\n' >lines
    (while read -r line; do sleep 0.1; printf '%s\n' "$line"; done <lines) | nc "$V4" 25 | cut -c1-3 | tr '\n' ' '
}
