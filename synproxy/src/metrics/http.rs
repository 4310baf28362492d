//! A small HTTP/1.1 server for what may be looked at: read-only, and bounded in memory, clients and time. It runs in threads of its own and reads what
//! the workers have published.

use crate::process::exit::Failure;
use crate::process::listening::{Closed, Listening};
use httparse::{EMPTY_HEADER, Request, Status};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tracing::{debug, info};

/// Clients served at once; others wait in the listener's queue.
const MAX_CLIENTS: usize = 16;
/// The longest request, in bytes.
const MAX_REQUEST: usize = 8192;
/// The most header fields of a request.
const MAX_HEADERS: usize = 64;
/// How long a client may take for its request, and again for the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it may then go on sending.
const LINGER: Duration = Duration::from_millis(500);
/// While all places are taken, how long a client may take for its request, and for everything. What the kernel has taken of an answer by then still
/// reaches the client.
const SILENCE: Duration = Duration::from_millis(100);
const TURN: Duration = Duration::from_millis(250);

/// An answer's type and body.
pub type Content = (&'static str, Vec<u8>);

/// What is served: the content of each path, `None` for one that is not there.
pub trait Site: Send + Sync + 'static {
    /// The content at this path, which begins with `/` and has no query.
    fn content(&self, path: &str) -> Option<Content>;
}

/// A listening server, before it serves.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// When the system refuses the address.
    pub fn listen(address: SocketAddr) -> Result<Self, Failure> {
        let listen = |error| Failure::Listen { what: "metrics", address, error };
        let listener = TcpListener::bind(address).map_err(listen)?;
        // Port zero stands for any.
        let address = listener.local_addr().map_err(listen)?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves clients in threads of their own, until it is closed or the process ends.
    ///
    /// # Errors
    /// When no thread can be created.
    pub fn serve(self, site: Arc<impl Site>) -> Result<Listening, Failure> {
        info!("statistics: http://{0}/ for people, http://{0}/metrics for Prometheus", self.address);
        let is_local = self.address.ip().is_loopback();
        Listening::serve("metrics", self.listener, move |listener, closed| accept(listener, closed, is_local, &site))
    }
}

fn accept(listener: &TcpListener, closed: &Closed, is_local: bool, site: &Arc<impl Site>) {
    let clients = Arc::new(Clients::default());
    while !closed.get() {
        let client = match listener.accept() {
            Ok((client, _)) => client,
            Err(_) if closed.get() => return,
            Err(error) => {
                // Descriptors may become free later.
                debug!("metrics: {error}");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        while !clients.has_place(Instant::now()) && !closed.get() {
            thread::sleep(Duration::from_millis(10));
        }
        let place = match clients.enter(&client) {
            Ok(place) => place,
            Err(error) => {
                debug!("metrics: {error}");
                continue;
            }
        };
        let site = Arc::clone(site);
        let serve = move || {
            if let Err(error) = serve(client, &place, is_local, &*site) {
                debug!("metrics: a client was not served: {error}");
            }
        };
        // Where no thread can be made the place is free again, for it was moved into what is dropped.
        if let Err(error) = thread::Builder::new().name("metrics client".to_owned()).spawn(serve) {
            debug!("metrics: {error}");
        }
    }
}

/// The clients that are served now, the oldest first.
#[derive(Default)]
struct Clients(Mutex<Vec<Served>>);

struct Served {
    stream: TcpStream,
    since: Instant,
    /// Its request has come.
    has_asked: bool,
}

impl Clients {
    /// Whether there is a place for one more. If not, one that has had time enough is ended, which frees a place soon: nobody keeps others out by
    /// silence, or by reading slowly.
    fn has_place(&self, now: Instant) -> bool {
        let clients = self.lock();
        if clients.len() < MAX_CLIENTS {
            return true;
        }
        let age = |one: &Served| now.saturating_duration_since(one.since);
        let silent = clients.iter().find(|one| !one.has_asked && age(one) >= SILENCE);
        if let Some(one) = silent.or_else(|| clients.iter().find(|one| age(one) >= TURN)) {
            // It fails only if the client has ended already.
            let _ = one.stream.shutdown(Shutdown::Both);
        }
        false
    }

    fn enter(self: &Arc<Self>, client: &TcpStream) -> io::Result<Place> {
        let since = Instant::now();
        let own = client.try_clone()?;
        let place = Place { clients: Arc::clone(self), descriptor: own.as_raw_fd() };
        self.lock().push(Served { stream: own, since, has_asked: false });
        Ok(place)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Served>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place of a client; freed when dropped.
struct Place {
    clients: Arc<Clients>,
    /// What tells its own from the others.
    descriptor: RawFd,
}

impl Place {
    fn has_asked(&self) {
        let mut clients = self.clients.lock();
        let own = clients.iter_mut().find(|one| one.stream.as_raw_fd() == self.descriptor);
        own.expect("it is there until this is dropped").has_asked = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clients.lock().retain(|one| one.stream.as_raw_fd() != self.descriptor);
    }
}

/// Reads one request and answers it.
fn serve(mut client: TcpStream, place: &Place, is_local: bool, site: &impl Site) -> io::Result<()> {
    let request = read_request(&mut client)?;
    place.has_asked();
    write(&mut client, &answer(&request, is_local, site), Instant::now() + PATIENCE)?;
    client.shutdown(Shutdown::Write)?;
    // What it may still send is read, so that no reset overtakes the answer; but not for ever.
    let until = Instant::now() + LINGER;
    let mut rest = [0; 512];
    for _ in 0..MAX_REQUEST / rest.len() {
        client.set_read_timeout(Some(left(until)?))?;
        if client.read(&mut rest)? == 0 {
            break;
        }
    }
    Ok(())
}

/// Writes all of it, or fails when it is not taken in time.
fn write(client: &mut TcpStream, mut bytes: &[u8], until: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        client.set_write_timeout(Some(left(until)?))?;
        match client.write(bytes)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => bytes = &bytes[written..],
        }
    }
    Ok(())
}

/// The time that is left.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Reads until the end of the header, which is as much as is ever looked at.
fn read_request(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let (until, mut request, mut piece) = (Instant::now() + PATIENCE, Vec::new(), [0; 1024]);
    loop {
        client.set_read_timeout(Some(left(until)?))?;
        let read = client.read(&mut piece)?;
        request.extend_from_slice(&piece[..read]);
        let is_whole = request.windows(4).any(|end| end == b"\r\n\r\n");
        if is_whole || read == 0 || request.len() > MAX_REQUEST {
            return Ok(request);
        }
    }
}

/// The whole answer to a request.
fn answer(request: &[u8], is_local: bool, site: &impl Site) -> Vec<u8> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = Request::new(&mut headers);
    let is_whole = request.len() <= MAX_REQUEST && matches!(parsed.parse(request), Ok(Status::Complete(_)));
    let (Some(method), Some(target), true) = (parsed.method, parsed.path, is_whole) else {
        return refusal("400 Bad Request", "", true);
    };
    let with_body = method != "HEAD";
    if !matches!(method, "GET" | "HEAD") {
        return refusal("405 Method Not Allowed", "Allow: GET, HEAD\r\n", with_body);
    }
    // A page elsewhere whose name is made to stand for this machine must not read it through its visitor's browser.
    let host = parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case("host"));
    if is_local && host.is_some_and(|host| !is_this_machine(host.value)) {
        return refusal("421 Misdirected Request", "", with_body);
    }
    let path = target.split(['?', '#']).next().unwrap_or_default();
    match site.content(path) {
        Some((kind, body)) => response("200 OK", kind, "", &body, with_body),
        None => refusal("404 Not Found", "", with_body),
    }
}

/// Whether the `Host` of a request is an address or `localhost`.
fn is_this_machine(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let name = match host.rsplit_once(':') {
        Some((name, port)) if is_port(port) && !name.is_empty() => name,
        _ => host,
    };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || IpAddr::from_str(address).is_ok()
}

fn refusal(status: &str, fields: &str, with_body: bool) -> Vec<u8> {
    response(status, "text/plain; charset=utf-8", fields, format!("{status}\n").as_bytes(), with_body)
}

fn response(status: &str, kind: &str, fields: &str, body: &[u8], with_body: bool) -> Vec<u8> {
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         X-Content-Type-Options: nosniff\r\nContent-Security-Policy: default-src 'self' 'unsafe-inline'; frame-ancestors 'none'\r\n\
         Connection: close\r\n{fields}\r\n",
        body.len()
    )
    .into_bytes();
    if with_body {
        answer.extend_from_slice(body);
    }
    answer
}

/// What holds of any request.
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing {
    use super::*;

    /// A page, and nothing else.
    struct Page;

    const BODY: &str = "the page\n";

    impl Site for Page {
        fn content(&self, path: &str) -> Option<Content> {
            assert!(!path.contains(['?', '#']));
            (path == "/page").then(|| ("text/plain", BODY.as_bytes().to_vec()))
        }
    }

    /// Any request has one whole answer, which is one of a few: nothing of the request is in it.
    pub fn http(data: &[u8]) {
        let (&first, request) = data.split_first().unwrap_or((&0, &[]));
        let answer = answer(request, first & 1 == 1, &Page);
        let text = String::from_utf8(answer).expect("an answer is text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head has an end");
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")).expect("a status line");
        let content = match status {
            "200 OK" => BODY.to_owned(),
            "400 Bad Request" | "404 Not Found" | "405 Method Not Allowed" | "421 Misdirected Request" => {
                format!("{status}\n")
            }
            other => panic!("{other}"),
        };
        let is_head = request.trim_ascii_start().starts_with(b"HEAD ") && status != "400 Bad Request";
        assert_eq!(body, if is_head { "" } else { &content });
        let fields: Vec<_> = lines.map(|line| line.split_once(": ").expect("a field")).collect();
        assert!(fields.contains(&("Content-Length", content.len().to_string().as_str())), "{fields:?}");
        assert_eq!(fields.iter().filter(|(name, _)| *name == "Content-Length").count(), 1);
        assert_eq!(status == "405 Method Not Allowed", fields.contains(&("Allow", "GET, HEAD")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Test;

    impl Site for Test {
        fn content(&self, path: &str) -> Option<Content> {
            match path {
                "/metrics" => Some(("text/plain", b"one 1\n".to_vec())),
                // More than the kernel takes at once.
                "/large" => Some(("text/plain", vec![b'x'; 16 << 20])),
                _ => None,
            }
        }
    }

    fn status(request: &str) -> String {
        let answer = answer(request.as_bytes(), true, &Test);
        String::from_utf8(answer).unwrap().lines().next().unwrap().to_owned()
    }

    #[test]
    fn only_what_is_there_is_served_and_only_to_read() {
        assert_eq!(status("GET /metrics HTTP/1.1\r\nHost: localhost:9117\r\n\r\n"), "HTTP/1.1 200 OK");
        assert_eq!(status("GET /metrics?name[]=x HTTP/1.0\r\n\r\n"), "HTTP/1.1 200 OK");
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), "HTTP/1.1 404 Not Found");
        assert_eq!(status("POST /metrics HTTP/1.1\r\n\r\n"), "HTTP/1.1 405 Method Not Allowed");
        assert_eq!(status("GET /metrics"), "HTTP/1.1 400 Bad Request");
        assert_eq!(status("\r\n\r\n"), "HTTP/1.1 400 Bad Request");
        let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(MAX_REQUEST));
        assert_eq!(status(&long), "HTTP/1.1 400 Bad Request");
        let head = answer(b"HEAD /metrics HTTP/1.1\r\n\r\n", true, &Test);
        assert!(head.ends_with(b"\r\n\r\n") && head.windows(17).any(|part| part == b"Content-Length: 6"));
    }

    #[test]
    fn a_loopback_listener_answers_to_no_foreign_name() {
        for host in ["127.0.0.1", "127.0.0.1:9117", "[::1]:9117", "[::1]", "LOCALHOST", "localhost:1"] {
            assert!(is_this_machine(host.as_bytes()), "{host}");
        }
        for host in ["evil.example", "evil.example:9117", "localhost.evil.example", "", "127.0.0.1.evil.example:1"] {
            assert!(!is_this_machine(host.as_bytes()), "{host}");
        }
        let request = b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n";
        assert!(answer(request, true, &Test).starts_with(b"HTTP/1.1 421 "));
        assert!(answer(request, false, &Test).starts_with(b"HTTP/1.1 200 "));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(request in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(answer(&request, true, &Test).starts_with(b"HTTP/1.1 "));
        }
    }

    fn asks(address: SocketAddr) -> io::Result<String> {
        let mut client = TcpStream::connect(address)?;
        client.write_all(b"GET /metrics HTTP/1.1\r\n")?;
        client.write_all(b"Host: localhost\r\n\r\n")?;
        let mut answer = String::new();
        client.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Neither those who say nothing, nor those who say half of it, nor those who do not take what they have asked for.
    #[test]
    fn a_client_gets_its_answer_over_tcp_and_who_waits_holds_nobody_up() {
        for said in ["", "GET /metrics HT", "GET /large HTTP/1.1\r\n\r\n"] {
            let server = Server::listen("127.0.0.1:0".parse().unwrap()).unwrap();
            let address = server.address();
            server.serve(Arc::new(Test)).unwrap();
            let mut idle = Vec::new();
            for _ in 0..3 {
                idle.extend((0..3 * MAX_CLIENTS).map(|_| {
                    let mut client = TcpStream::connect(address).unwrap();
                    client.write_all(said.as_bytes()).unwrap();
                    client
                }));
                let begin = Instant::now();
                let answer = asks(address).unwrap();
                assert!(answer.ends_with("\r\n\r\none 1\n"), "{answer}");
                // By their own patience the places would be free after three times as long, or never.
                assert!(begin.elapsed() < 2 * PATIENCE, "{said:?}: {:?}", begin.elapsed());
            }
        }
    }

    #[test]
    fn who_goes_on_sending_is_heard_for_half_a_second() {
        let server = Server::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = server.address();
        server.serve(Arc::new(Test)).unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let begin = Instant::now();
        while client.write_all(b"x").is_ok() {
            assert!(begin.elapsed() < Duration::from_secs(5), "it is still heard");
            thread::sleep(Duration::from_millis(100));
        }
    }
}
