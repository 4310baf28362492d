# What all of these scripts begin with: sourced before each, in the namespace of the server (then `serve` is called) and in that of the client (`ask`).
# $D is a folder that both see, gone afterwards; it holds `payload`, of three million bytes. $V4 and $V6 are the server's addresses, $CLIENT the
# client's. What `ask` prints is compared: with the kernel's bridge in the middle, and with the proxy.
export D V4 V6 CLIENT HOME=$D/home LC_ALL=C PATH=$PATH:/usr/sbin:/sbin:/usr/lib/nagios/plugins
umask 022
mkdir -p "$HOME"
cd "$HOME"

# Ends the test as ignored, for this reason.
ignored() { echo "ignored: $*"; exit 77; }
# A key and a certificate of a server called `server`.
cert() {
    openssl req -x509 -newkey rsa:2048 -nodes -days 9 -subj /CN=server -keyout "$D/key.pem" -out "$D/cert.pem" 2>"$D/req"
    cat "$D/key.pem" "$D/cert.pem" >"$D/both.pem"
}
# Says whether these files, or the standard input, are the payload.
same() {
    local file
    if [ $# -eq 0 ]; then cmp -s - "$D/payload" && echo "the payload" || echo "NOT the payload"; fi
    for file; do cmp -s "$file" "$D/payload" && echo "${file##*/}: the payload" || echo "${file##*/}: NOT the payload"; done
}
# Each of the server's addresses, IPv6 in brackets.
ips="$V4 [$V6]"
# The web server of several scripts, at the ports of $1, which are lines of its configuration.
web() {
    mkdir -p "$D/www"
    cp "$D/payload" "$D/www/payload"
    echo "hello" >"$D/www/hello"
    cat >"$D/nginx.conf" <<CONF
daemon off; user root; worker_processes 1; pid $D/nginx.pid; error_log $D/nginx.log;
events { worker_connections 1024; }
http {
    access_log off;
    client_body_temp_path $D/t1; proxy_temp_path $D/t2; fastcgi_temp_path $D/t3; uwsgi_temp_path $D/t4; scgi_temp_path $D/t5;
    client_max_body_size 100m;
    server {
        $1
        ssl_protocols TLSv1.2 TLSv1.3;
        root $D/www; default_type text/plain;
        location = /post { return 200 "posted\n"; }
        location = /moved { return 302 /hello; }
    }
}
CONF
    exec nginx -c "$D/nginx.conf" -e "$D/nginx.log"
}
