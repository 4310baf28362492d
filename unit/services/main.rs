//! Services with clients and servers of others, in the recipes of `docs/services.md`: sites by TLS server name, and the PROXY protocol to nginx. Needs root.
//! Run by `make test-services`, which installs the programs, and never by `cargo test` alone.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use harness::{leftovers, test};
use unit::netns::{Appliance, Backend, Namespace, Rig};

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
    for name in ["a.example", "x.b.example"] {
        let curl = format!("curl -skv -m 10 --resolve {name}:443:10.77.0.100 https://{name}/");
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
