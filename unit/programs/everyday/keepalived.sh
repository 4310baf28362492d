# needs: keepalived nginx
# ports: 80
serve() { web "listen 80; listen [::]:80;"; }
ask() {
    [ -e /proc/net/ip_vs ] || ignored "keepalived's checks are those of IPVS, which this kernel does not have"
    cat >keepalived.conf <<CONF
global_defs {
  enable_script_security
}
virtual_server 192.0.2.1 80 {
  delay_loop 1
  protocol TCP
  alpha
  real_server $V4 80 {
    TCP_CHECK {
      connect_timeout 2
    }
  }
  real_server $V4 81 {
    TCP_CHECK {
      connect_timeout 2
    }
  }
}
virtual_server 192.0.2.1 8080 {
  delay_loop 1
  protocol TCP
  alpha
  real_server $V4 80 {
    HTTP_GET {
      url {
        path /hello
        status_code 200
      }
      connect_timeout 2
    }
  }
}
CONF
    timeout 9 keepalived -n -l -C -D -f keepalived.conf -p k.pid -c c.pid >said 2>&1 || true
    # What is up at the end; the first check of a closed port may have been let in.
    grep -oE '(TCP connection to|HTTP status code success to|Gained quorum).*(success|failed|80).*' said | sort -u | head -20
}
