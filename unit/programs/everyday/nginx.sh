# needs: nginx curl wget
# ports: 80
serve() { web "listen 80; listen [::]:80;"; }
ask() {
    for ip in $ips; do
        curl -sS "http://$ip/hello" "http://$ip/hello" -w '%{http_code} %{size_download} %{num_connects}\n'
        curl -sS "http://$ip/payload" | same
        curl -sS -r 100-199 "http://$ip/payload" -o part -w '%{http_code} %{size_download}\n'
        curl -sS -L "http://$ip/moved" -w '%{http_code} %{num_redirects}\n'
        curl -sS --data-binary "@$D/payload" "http://$ip/post" -w '%{http_code} %{size_upload}\n'
        curl -sS -0 "http://$ip/none" -o none -w '%{http_code} %{http_version}\n'
        curl -sS --tcp-fastopen "http://$ip/hello"
        curl -sS --parallel -Z -o one -o two -o three "http://$ip/payload" "http://$ip/payload" "http://$ip/payload" 2>&1 | grep -i error || true
        same one two three
        wget -q -O got "http://$ip/payload" && same got
    done
}
