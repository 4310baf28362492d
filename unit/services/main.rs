//! Services with clients and servers of others, in the recipes of `docs/services.md`: sites by TLS server name, and the PROXY protocol to nginx. Needs root.
//! Run by `make test-services`, which installs the programs, and never by `cargo test` alone.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use harness::{leftovers, note, test};
use tcpstate::service::names::Protocols;
use tcpstate::service::{Reading, tls};
use unit::netns::{self, Appliance, Backend, Namespace, Rig, traffic};

fn main() -> std::process::ExitCode {
    unit::netns::programs();
    harness::main()
}

/// A program that ends with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(place: &Namespace, program: &str, arguments: &[&str]) -> Running {
    let mut command = place.command(program);
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    Running(command.spawn().unwrap_or_else(|error| panic!("{program}: {error}")))
}

/// What a shell line in a namespace prints, whether it succeeds or not, to both outputs.
fn said(place: &Namespace, line: &str) -> String {
    place.sh(&format!("({line}) 2>&1 || true"))
}

/// What the line says once it says `until`; it is repeated for a while, as servers take a moment.
fn says(place: &Namespace, line: &str, until: &str) -> String {
    let begin = Instant::now();
    loop {
        let text = said(place, line);
        if text.contains(until) {
            return text;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "no {until:?} from {line}: {text}");
        thread::sleep(Duration::from_millis(200));
    }
}

/// A certificate for a name, and its key.
fn certificate(rig: &Rig, name: &str) -> [PathBuf; 2] {
    let files = ["crt", "key"].map(|kind| leftovers::file(&format!("{name}.{kind}")));
    let [certificate, key] = files.each_ref().map(|file| file.display());
    rig.server.sh(&format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {key} -out {certificate} -days 2 -subj /CN={name} 2>/dev/null"
    ));
    files
}

/// The `nth` configuration of the document, with addresses of the rig.
fn recipe(nth: usize) -> String {
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/services.md");
    let text = fs::read_to_string(document).expect("the document");
    let block = text.split("```\n").filter(|block| block.contains("address = \"")).nth(nth);
    block.expect("a recipe").replace("192.0.2.", "10.77.0.")
}

fn add_servers(rig: &Rig) {
    for n in 10..14 {
        rig.server.sh(&format!("ip addr add 10.77.0.{n}/24 dev s0"));
    }
}

#[test]
fn two_sites_behind_one_address_by_their_tls_names() {
    let rig = Rig::new();
    add_servers(&rig);
    let mut servers = Vec::new();
    for (name, address) in [("a.example", 10), ("x.b.example", 11), ("x.b.example", 12)] {
        let [certificate, key] = certificate(&rig, name);
        let accept = format!("10.77.0.{address}:443");
        let files = [certificate.to_str().expect("text"), key.to_str().expect("text")];
        servers.push(run(
            &rig.server,
            "openssl",
            &["s_server", "-quiet", "-www", "-accept", &accept, "-cert", files[0], "-key", files[1]],
        ));
    }
    let whole = recipe(0);
    let inside =
        whole.trim().strip_prefix("synproxyconf = {").and_then(|rest| rest.strip_suffix("};")).expect("a file");
    let _proxy = Appliance::start(&rig, Backend::Packet, inside);
    for (name, ask) in [
        ("a.example", "--resolve a.example:443:10.77.0.100 https://a.example/"),
        ("x.b.example", "--resolve x.b.example:443:10.77.0.100 https://x.b.example/"),
    ] {
        let curl = format!("curl -skv -m 10 {ask}");
        says(&rig.client, &curl, &format!("subject: CN={name}"));
        let openssl = format!("timeout 10 openssl s_client -connect 10.77.0.100:443 -servername {name} </dev/null");
        says(&rig.client, &openssl, &format!("CN = {name}"));
        let gnutls = format!("timeout 10 gnutls-cli --insecure --sni-hostname {name} -p 443 10.77.0.100 </dev/null");
        says(&rig.client, &gnutls, &format!("CN={name}"));
    }
    let nobody = "curl -skv -m 10 --resolve c.example:443:10.77.0.100 https://c.example/";
    says(&rig.client, nobody, "unrecognized name");
    drop(servers);
}

/// What every nginx here is told besides.
const NGINX: &str = "daemon off; master_process off; error_log stderr; events { }";

/// The lab is behind a router; here that is the station that has its addresses.
#[test]
fn a_front_for_a_lab_connects_where_it_may() {
    let rig = Rig::new();
    add_servers(&rig);
    let (conf, pid) = (leftovers::file("nginx.conf"), leftovers::file("nginx.pid"));
    let text = format!(
        "pid {}; {NGINX}
         http {{ access_log off; server {{ listen 10.77.0.11:80; location / {{ return 200 \"$http_host seen as $remote_addr\\n\"; }} }} }}",
        pid.display()
    );
    fs::write(&conf, text).expect("a file of one's own");
    let nginx = run(&rig.server, "nginx", &["-c", conf.to_str().expect("text")]);
    // The names of the lab, for the box alone.
    let hosts = rig.middle.name_hosts("10.77.0.11 www.lab.example\n10.77.0.100 box.lab.example\n");
    let config = format!("service_buffers = 16; services = {{ {} }};", recipe(4));
    let _proxy = Appliance::start(&rig, Backend::Packet, &config);
    let curl = |rest: &str| format!("curl -sS -m 10 {rest}");
    let seen = |host: &str| format!("{host} seen as 10.77.0.200");
    says(&rig.client, &curl("--socks5 10.77.0.100:1080 http://10.77.0.11/"), &seen("10.77.0.11"));
    says(&rig.client, &curl("--socks5-hostname 10.77.0.100:1080 http://www.lab.example/"), &seen("www.lab.example"));
    let tunnel = "--proxytunnel --proxy http://10.77.0.100:3128";
    says(&rig.client, &curl(&format!("{tunnel} --proxy-user alice:secret http://10.77.0.11/")), &seen("10.77.0.11"));
    says(
        &rig.client,
        &curl(&format!("{tunnel} --proxy-user alice:secret http://www.lab.example/")),
        &seen("www.lab.example"),
    );
    says(&rig.client, &curl(&format!("{tunnel} --proxy-user alice:wrong http://10.77.0.11/")), "407");
    says(&rig.client, &curl(&format!("{tunnel} --proxy-user alice:secret http://10.77.0.11:81/")), "403");
    // Not allowed; refused; a name without an address; one that is the box's.
    for (what, code) in [
        ("--socks5 10.77.0.100:1080 http://10.77.0.2/", "(2)"),
        ("--socks5 10.77.0.100:1080 http://10.77.0.12/", "(5)"),
        ("--socks5-hostname 10.77.0.100:1080 http://none.lab.example/", "(4)"),
        ("--socks5-hostname 10.77.0.100:1080 http://box.lab.example/", "(4)"),
        ("--socks5-hostname 10.77.0.100:1080 http://www.other.example/", "(4)"),
    ] {
        says(&rig.client, &curl(what), code);
    }
    drop(nginx);
    drop(hosts);
    let _ = (fs::remove_file(conf), fs::remove_file(pid));
}

/// curl sends the header that a proxy would.
#[test]
fn a_proxy_in_front_says_who_the_client_is() {
    let rig = Rig::new();
    add_servers(&rig);
    let (conf, pid) = (leftovers::file("nginx.conf"), leftovers::file("nginx.pid"));
    let text = format!(
        "pid {}; {NGINX}
         http {{ access_log off; server {{ listen 10.77.0.10:8080 proxy_protocol; location / {{
             return 200 \"$http_host for $proxy_protocol_addr at $proxy_protocol_server_addr:$proxy_protocol_server_port\\n\"; }} }} }}",
        pid.display()
    );
    fs::write(&conf, text).expect("a file of one's own");
    let nginx = run(&rig.server, "nginx", &["-c", conf.to_str().expect("text")]);
    let config = format!("service_buffers = 16; services = {{ {} }};", recipe(2));
    let _proxy = Appliance::start(&rig, Backend::Packet, &config);
    let ask = "--resolve a.example:80:10.77.0.100 http://a.example/";
    says(&rig.client, &format!("curl -s -m 10 --haproxy-protocol {ask}"), "a.example for 10.77.0.1 at 10.77.0.100:80");
    says(&rig.client, &format!("curl -s -m 10 {ask} || echo code $?"), "code 56");
    drop(nginx);
    let _ = (fs::remove_file(conf), fs::remove_file(pid));
}

#[test]
fn nginx_gets_the_header_of_the_proxy_protocol() {
    for version in ["v1", "v2"] {
        let rig = Rig::new();
        add_servers(&rig);
        let (conf, pid) = (leftovers::file("nginx.conf"), leftovers::file("nginx.pid"));
        let text = format!(
            "daemon off; master_process off; pid {}; error_log stderr; events {{ }}
             http {{ access_log off; server {{ listen 10.77.0.10:8080 proxy_protocol; location / {{
                 return 200 \"$http_host for $proxy_protocol_addr at $proxy_protocol_server_addr:$proxy_protocol_server_port seen as $remote_addr\\n\"; }} }}
                 server {{ listen 10.77.0.11:8080 proxy_protocol; listen 10.77.0.12:8080 proxy_protocol; location / {{ return 404 \"nobody\\n\"; }} }} }}",
            pid.display()
        );
        fs::write(&conf, text).expect("a file of one's own");
        let nginx = run(&rig.server, "nginx", &["-c", conf.to_str().expect("text")]);
        let block = recipe(1).replace("proxy = v1", &format!("proxy = {version}"));
        let config = format!("service_buffers = 16; services = {{ {block} }};");
        let _proxy = Appliance::start(&rig, Backend::Packet, &config);
        let ask = |name: &str| format!("curl -s -m 10 --resolve {name}:80:10.77.0.100 http://{name}/");
        says(&rig.client, &ask("a.example"), "a.example for 10.77.0.1 at 10.77.0.100:80 seen as 10.77.0.1");
        says(&rig.client, &ask("other.example"), "nobody");
        drop(nginx);
        let _ = (fs::remove_file(conf), fs::remove_file(pid));
    }
}

/// HTTP/2 without TLS, as clients speak it that know it of their server.
#[test]
fn http_2_without_tls_goes_by_its_authority() {
    let rig = Rig::new();
    add_servers(&rig);
    let (conf, pid) = (leftovers::file("nginx.conf"), leftovers::file("nginx.pid"));
    let server = |n, says| {
        format!(
            "server {{ listen 10.77.0.{n}:8080 http2; location / {{ return 200 \"{says} $host $server_protocol\\n\"; }} }}"
        )
    };
    let text = format!(
        "pid {}; {NGINX} http {{ access_log off; {} {} }}",
        pid.display(),
        server(10, "one"),
        server(11, "other")
    );
    fs::write(&conf, text).expect("a file of one's own");
    let nginx = run(&rig.server, "nginx", &["-c", conf.to_str().expect("text")]);
    let block = "{ address = \"10.77.0.100\"; port = 80; protocol = http;
        routes = { \"a.example = 10.77.0.10:8080\" }; default = { \"10.77.0.11:8080\" }; }";
    let _proxy = Appliance::start(&rig, Backend::Packet, &format!("service_buffers = 16; services = {{ {block} }};"));
    for (name, says_what) in [("a.example", "one a.example HTTP/2.0"), ("b.example", "other b.example HTTP/2.0")] {
        let curl = format!("curl -sS -m 10 --http2-prior-knowledge --resolve {name}:80:10.77.0.100 http://{name}/");
        says(&rig.client, &curl, says_what);
        // With fields in front that fill the table of the block, and a request body.
        let long = format!("{curl} -A $(printf 'a%.0s' $(seq 2000)) -d x=y");
        says(&rig.client, &long, says_what);
        says(&rig.client, &format!("timeout 10 nghttp -H ':authority: {name}' http://10.77.0.100/"), says_what);
    }
    drop(nginx);
    let _ = (fs::remove_file(conf), fs::remove_file(pid));
}

/// What clients send first that run this line and connect to port 4430 of their own machine.
fn first_bytes(place: &Namespace, line: &str) -> Vec<Vec<u8>> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&heard);
    let server = place.serve(netns::CLIENT_V4, 4430, move |mut stream| {
        let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        while tls::read(&bytes, 65_535, &Protocols::default()) == Reading::More {
            match stream.read(&mut part) {
                Ok(len @ 1..) => bytes.extend_from_slice(&part[..len]),
                _ => break,
            }
        }
        if !bytes.is_empty() {
            all.lock().expect("nobody panics with it").push(bytes);
        }
        Ok(())
    });
    said(place, line);
    drop(server);
    let heard = heard.lock().expect("nobody panics with it");
    heard.clone()
}

/// The server name and the protocols of a ClientHello, as another parser finds them.
fn by_another_parser(bytes: &[u8]) -> Option<(String, Vec<Vec<u8>>)> {
    // The message may lie in several records.
    let (mut rest, mut message) = (bytes, Vec::new());
    while let [22, _, _, high, low, behind @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(behind.len());
        message.extend_from_slice(&behind[..len]);
        rest = &behind[len..];
    }
    let (_, parsed) = tls_parser::parse_tls_message_handshake(&message).ok()?;
    let tls_parser::TlsMessage::Handshake(tls_parser::TlsMessageHandshake::ClientHello(hello)) = parsed else {
        return None;
    };
    let (_, extensions) = tls_parser::parse_tls_client_hello_extensions(hello.ext?).ok()?;
    let (mut name, mut protocols) = (String::new(), Vec::new());
    for extension in extensions {
        match extension {
            tls_parser::TlsExtension::SNI(names) => {
                let (_, host) = names.first()?;
                name = String::from_utf8(host.to_vec()).ok()?;
            }
            tls_parser::TlsExtension::ALPN(all) => protocols = all.iter().map(|own| own.to_vec()).collect(),
            _ => {}
        }
    }
    Some((name, protocols))
}

/// A client in Go, which has TLS of its own.
const GO: &str = r#"package main

import ("crypto/tls"; "fmt")

func main() {
	_, err := tls.Dial("tcp", "10.77.0.1:4430", &tls.Config{ServerName: "real.example", NextProtos: []string{"h2"}, InsecureSkipVerify: true})
	fmt.Println(err)
}
"#;

/// Each client is run and what it sends is read in every piece that may come: the name is found, and never one before it is all there. Another parser finds the
/// same.
#[test]
fn the_hellos_of_real_clients_are_read_as_another_parser_reads_them() {
    const PLACE: &str = "real.example:4430";
    let rig = Rig::new();
    rig.client.sh("ip link set lo up");
    let hosts = rig.client.name_hosts("10.77.0.1 real.example\n");
    let go = leftovers::file("hello.go");
    fs::write(&go, GO).expect("a file of one's own");
    let [home, chromium, firefox] = ["home", "chromium", "firefox"].map(leftovers::file);
    [&home, &chromium, &firefox]
        .into_iter()
        .for_each(|folder| fs::create_dir_all(folder).expect("a folder of one's own"));
    let openssl =
        format!("timeout 10 openssl s_client -connect {PLACE} -servername real.example -alpn h2,http/1.1 </dev/null");
    let in_home = format!("HOME={} XDG_CACHE_HOME={}", home.display(), home.display());
    let clients = [
        ("OpenSSL", openssl.clone()),
        ("OpenSSL, TLS 1.2", format!("{openssl} -tls1_2")),
        ("curl", format!("curl -sk -m 10 https://{PLACE}/")),
        ("GnuTLS", "timeout 10 gnutls-cli --insecure --alpn h2 -p 4430 real.example </dev/null".to_owned()),
        ("Go", format!("{in_home} GO111MODULE=off CGO_ENABLED=0 timeout 120 go run {}", go.display())),
        (
            "Chromium",
            format!(
                "{in_home} timeout 40 chromium --headless --no-sandbox --disable-gpu --user-data-dir={} --dump-dom https://{PLACE}/",
                chromium.display()
            ),
        ),
        (
            "Firefox",
            format!(
                "{in_home} timeout 40 firefox-esr --headless --no-remote --profile {} --screenshot {}/x.png https://{PLACE}/",
                firefox.display(),
                home.display()
            ),
        ),
    ];
    let mut longest = 0;
    for (client, line) in clients {
        let hellos = first_bytes(&rig.client, &line);
        assert!(!hellos.is_empty(), "{client} has not connected: {}", said(&rig.client, &line));
        for hello in &hellos {
            let (name, protocols) =
                by_another_parser(hello).unwrap_or_else(|| panic!("{client}: {}", hello.escape_ascii()));
            assert_eq!(name, "real.example", "{client}");
            let read = |bytes: &[u8]| tls::read(bytes, 65_535, &Protocols::default());
            let Reading::Asks(asked) = read(hello) else {
                panic!("{client}: it is no hello: {}", hello.escape_ascii())
            };
            assert_eq!(asked.name.map(|name| name.to_string()).as_deref(), Some("real.example"), "{client}");
            // Whatever comes first, nothing is made of a part.
            let whole = (1..=hello.len()).find(|&len| read(&hello[..len]) != Reading::More).expect("it is read");
            assert_eq!(read(&hello[..whole]), read(hello), "{client}: at {whole} of {} bytes", hello.len());
            longest = longest.max(hello.len());
            let protocols: Vec<_> = protocols.iter().map(|own| own.escape_ascii().to_string()).collect();
            note!("{client}: {} bytes, of which {whole} decide, protocols {protocols:?}", hello.len());
        }
    }
    assert!(longest > 1460, "none has a key share of today: {longest} bytes");
    drop(hosts);
    let _ = fs::remove_file(go);
    [home, chromium, firefox].into_iter().for_each(|folder| _ = fs::remove_dir_all(folder));
}

/// The front for a lab of the document, with a browser and with ssh.
#[test]
fn a_browser_and_ssh_reach_the_lab_by_socks() {
    let rig = Rig::new();
    add_servers(&rig);
    let (conf, pid) = (leftovers::file("nginx.conf"), leftovers::file("nginx.pid"));
    let text = format!(
        "pid {}; {NGINX}
         http {{ access_log off; server {{ listen 10.77.0.11:80; location / {{ return 200 \"$http_host seen as $remote_addr\\n\"; }} }} }}",
        pid.display()
    );
    fs::write(&conf, text).expect("a file of one's own");
    let nginx = run(&rig.server, "nginx", &["-c", conf.to_str().expect("text")]);
    let folder = leftovers::file("ssh");
    let at = folder.display();
    fs::create_dir_all(&folder).expect("a folder of one's own");
    rig.server
        .sh(&format!("mkdir -p /run/sshd; for k in host user; do ssh-keygen -q -t ed25519 -N '' -f {at}/$k; done"));
    let options = format!(
        "-o HostKey={at}/host -o AuthorizedKeysFile={at}/user.pub -o StrictModes=no -o UsePAM=no -o PidFile=none -o ListenAddress=10.77.0.11 \
         -o PermitRootLogin=prohibit-password"
    );
    let arguments: Vec<&str> = ["-D", "-e", "-f", "/dev/null"].into_iter().chain(options.split_whitespace()).collect();
    let sshd = run(&rig.server, "/usr/sbin/sshd", &arguments);
    let hosts = rig.middle.name_hosts("10.77.0.11 www.lab.example\n");
    let config = format!("service_buffers = 16; services = {{ {} }};", recipe(4));
    let _proxy = Appliance::start(&rig, Backend::Packet, &config);
    let home = leftovers::file("home");
    fs::create_dir_all(&home).expect("a folder of one's own");
    let chromium = format!(
        "HOME={0} XDG_CACHE_HOME={0} timeout 60 chromium --headless --no-sandbox --disable-gpu --user-data-dir={0}/profile \
         --proxy-server=socks5://10.77.0.100:1080 --dump-dom http://www.lab.example/",
        home.display()
    );
    says(&rig.client, &chromium, "www.lab.example seen as 10.77.0.200");
    let ssh = format!(
        "timeout 60 ssh -F none -i {at}/user -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
         -o 'ProxyCommand=nc -X 5 -x 10.77.0.100:1080 %h %p' root@www.lab.example"
    );
    let whole = "head -c 5000000 /dev/zero | sha256sum";
    let sum = rig.client.sh(whole);
    // A file there, and one back.
    says(&rig.client, &format!("{ssh} '{whole}'"), sum.trim());
    says(&rig.client, &format!("{ssh} 'head -c 5000000 /dev/zero' | sha256sum"), sum.trim());
    says(&rig.client, &format!("head -c 5000000 /dev/zero | {ssh} sha256sum"), sum.trim());
    drop((nginx, sshd, hosts));
    let _ = (fs::remove_file(conf), fs::remove_file(pid), fs::remove_dir_all(folder), fs::remove_dir_all(home));
}

/// How long a transfer is: mostly some tens of kilobytes, sometimes megabytes.
fn length(n: u64) -> u64 {
    let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    if n.is_multiple_of(50) { 1 << 20 | mixed & 0x1f_ffff } else { mixed & 0x1_ffff }
}

const SOCKS_SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);

/// One transfer as FTP has them, by SOCKS: a connection for one file, whose end is the file's. Every second goes the other way, and the server says how many
/// bytes it has got.
fn transfer(rig: &Rig, socks: SocketAddr, n: u64) -> io::Result<()> {
    let mut stream = rig.client.connect(socks)?;
    stream.write_all(&[5, 1, 0])?;
    let mut method = [0; 2];
    stream.read_exact(&mut method)?;
    let [a, b, c, d] = SOCKS_SERVER.octets();
    stream.write_all(&[5, 1, 0, 1, a, b, c, d, 0x1f, 0x90])?;
    let mut reply = [0; 10];
    stream.read_exact(&mut reply)?;
    if (method, reply[1]) != ([5, 0], 0) {
        return Err(io::Error::other(format!("{method:?} {reply:?}")));
    }
    let is_up = n % 2 == 1;
    stream.write_all(&[&[u8::from(is_up)], &n.to_be_bytes()[..], &length(n).to_be_bytes()].concat())?;
    let got = match is_up {
        false => traffic::receive(&stream, n, None)?,
        true => {
            traffic::send(&stream, n, length(n))?;
            stream.shutdown(Shutdown::Write)?;
            let mut count = [0; 8];
            stream.read_exact(&mut count)?;
            u64::from_be_bytes(count)
        }
    };
    match got == length(n) {
        true => Ok(()),
        false => Err(io::Error::other(format!("{got} bytes of {}", length(n)))),
    }
}

/// The server's side of it.
fn serve_transfer(mut stream: TcpStream) -> io::Result<()> {
    let mut order = [0; 17];
    stream.read_exact(&mut order)?;
    let [n, bytes] = [1, 9].map(|at| u64::from_be_bytes(std::array::from_fn(|i| order[at + i])));
    if order[0] == 0 {
        return traffic::send(&stream, n, bytes);
    }
    let got = traffic::receive(&stream, n, None)?;
    stream.write_all(&got.to_be_bytes())
}

/// Runs so many transfers, eight at once; says how long they took.
fn transfers(rig: &Rig, what: &str, socks: SocketAddr, count: u64) {
    let next = AtomicU64::new(0);
    let begin = Instant::now();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= count {
                        return;
                    }
                    transfer(rig, socks, n).unwrap_or_else(|error| panic!("{what}, transfer {n}: {error}"));
                }
            });
        }
    });
    let bytes: u64 = (0..count).map(length).sum();
    note!("{what}: {count} transfers of {} MB in {:.1} s, each whole", bytes >> 20, begin.elapsed().as_secs_f64());
}

/// Transfers end with their exact byte count, by the box and by Dante in its place. `TRANSFERS` of the environment says how many there are to be.
#[test(alone)]
fn transfers_by_socks_end_with_their_exact_byte_count() {
    let count = std::env::var("TRANSFERS").map_or(300, |text| text.parse().expect("TRANSFERS is a number"));
    let rig = Rig::new();
    add_servers(&rig);
    let socks = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 77, 0, 100)), 1080);
    let server = rig.server.serve(IpAddr::V4(SOCKS_SERVER), 8080, serve_transfer);
    let block = "{ address = \"10.77.0.100\"; port = 1080; protocol = socks; reach = full; pool = { \"10.77.0.200\" };
        next_hop = \"10.77.0.2\"; allow = { \"10.77.0.1 = 10.77.0.11:8080\" }; }";
    for fast_path in ["off", "tc"] {
        let config =
            format!("conntablesize = 65536; fast_path = {fast_path}; service_buffers = 64; services = {{ {block} }};");
        let proxy = Appliance::start(&rig, Backend::Packet, &config);
        transfers(&rig, &format!("the box, fast_path = {fast_path}"), socks, count);
        assert!(proxy.stop().status.success());
    }
    // The box's place, as a host that has its addresses.
    let conf = leftovers::file("danted.conf");
    let text = "logoutput: stderr\ninternal: 10.77.0.100 port = 1080\nexternal: 10.77.0.200\nclientmethod: none\nsocksmethod: none
user.privileged: root\nuser.unprivileged: nobody\nclient pass { from: 0.0.0.0/0 to: 0.0.0.0/0 }\nsocks pass { from: 0.0.0.0/0 to: 0.0.0.0/0 }\n";
    fs::write(&conf, text).expect("a file of one's own");
    rig.middle.sh(
        "ip link set lo up; ip link set wan0 up; ip link set lan0 up; ip addr add 10.77.0.100/32 dev wan0; ip addr add 10.77.0.200/32 dev lan0
         ip route add 10.77.0.1/32 dev wan0 src 10.77.0.100; ip route add 10.77.0.11/32 dev lan0 src 10.77.0.200
         sysctl -qw net.ipv4.conf.all.rp_filter=0",
    );
    for host in [&rig.client, &rig.server] {
        host.sh("ip neigh flush all");
    }
    let danted = run(&rig.middle, "danted", &["-f", conf.to_str().expect("text")]);
    let begin = Instant::now();
    while transfer(&rig, socks, 1).is_err() {
        assert!(begin.elapsed() < Duration::from_secs(20), "Dante answers");
        thread::sleep(Duration::from_millis(200));
    }
    transfers(&rig, "Dante", socks, count);
    drop((danted, server));
    let _ = fs::remove_file(conf);
}
