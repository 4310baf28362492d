//! A syslog server that gets a message for each event (RFC 5424): over a datagram socket of this machine, as /dev/log is, or over UDP (RFC 5426).

use super::sink::{Line, Sink};
use ::control::{AttackStatus, Event, LinkCondition};
use confparse::Syslog;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::process;
use std::time::Duration;

/// How long a message may wait for a server whose queue is full.
const PATIENCE: Duration = Duration::from_secs(1);

/// The facility of system daemons (RFC 5424 section 6.2.1).
const DAEMON: u8 = 3;

/// See the module.
pub struct SyslogSocket {
    server: Syslog,
    open: Option<Socket>,
}

enum Socket {
    Unix(UnixDatagram),
    Udp(UdpSocket),
}

impl SyslogSocket {
    /// The way to this server, opened with the first event.
    pub fn new(server: Syslog) -> Self {
        Self { server, open: None }
    }

    fn open(&self) -> io::Result<Socket> {
        match &self.server {
            Syslog::Socket(_) => {
                let socket = UnixDatagram::unbound()?;
                socket.set_write_timeout(Some(PATIENCE))?;
                Ok(Socket::Unix(socket))
            }
            Syslog::Udp(address) => {
                let any: SocketAddr = match address {
                    SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                    SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
                };
                Ok(Socket::Udp(UdpSocket::bind(any)?))
            }
        }
    }
}

impl Sink for SyslogSocket {
    fn deliver(&mut self, line: &Line) -> io::Result<()> {
        let message = message(line);
        let socket = match self.open.take() {
            Some(socket) => socket,
            None => self.open()?,
        };
        // The address is given each time: a server that was started again has another socket at the same place.
        match (self.open.insert(socket), &self.server) {
            (Socket::Unix(socket), Syslog::Socket(path)) => socket.send_to(message.as_bytes(), path)?,
            (Socket::Udp(socket), Syslog::Udp(address)) => socket.send_to(message.as_bytes(), address)?,
            _ => unreachable!("the socket was opened for this server"),
        };
        Ok(())
    }
}

/// `<PRI>1 TIME HOST synproxy PID EVENT - JSON`: the event's name is the message's type, and the text is the line of JSON.
fn message(line: &Line) -> String {
    let record = &line.record;
    let priority = DAEMON * 8 + severity(&record.event);
    let is_plain = !record.host.is_empty() && record.host.bytes().all(|byte| byte.is_ascii_graphic());
    let host = if is_plain { &record.host } else { "-" };
    let (time, pid, event) = (&record.time, process::id(), record.event.name());
    format!("<{priority}>1 {time} {host} synproxy {pid} {event} - {}", line.json)
}

/// RFC 5424 section 6.2.1, table 2.
fn severity(event: &Event) -> u8 {
    const CRITICAL: u8 = 2;
    const ERROR: u8 = 3;
    const WARNING: u8 = 4;
    const NOTICE: u8 = 5;
    match event {
        Event::BoxFailed { .. } => CRITICAL,
        Event::AttackBegin(attack)
        | Event::AttackUpdate(attack)
        | Event::AttackPeak(attack)
        | Event::AttackEnd(attack) => match attack.status {
            AttackStatus::AttackExceededCapability => CRITICAL,
            AttackStatus::AttackMitigationInProgress => WARNING,
            _ => NOTICE,
        },
        Event::LinkChanged { condition: LinkCondition::Up, .. } => NOTICE,
        Event::LinkChanged { .. } | Event::WorkerStalled { .. } | Event::ServerDown { .. } => ERROR,
        Event::SettingsChanged { .. } => WARNING,
        Event::ModeSwitched { .. } | Event::WorkerResumed { .. } | Event::ServerUp { .. } => NOTICE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::events::Record;

    fn line(host: &str) -> Line {
        let [time, host, appliance] = ["2026-11-29T13:15:42.123Z", host, "lan0-wan0"].map(str::to_owned);
        let record = Record { number: 1, time, host, appliance, event: Event::WorkerResumed { worker: 3 } };
        Line { json: serde_json::to_string(&record).unwrap(), record }
    }

    #[test]
    fn a_message_has_the_header_of_rfc_5424() {
        let lead = "<29>1 2026-11-29T13:15:42.123Z gate synproxy ";
        let text = message(&line("gate"));
        let rest = text.strip_prefix(lead).unwrap_or_else(|| panic!("{text}"));
        let json = r#"{"number":1,"time":"2026-11-29T13:15:42.123Z","host":"gate","box":"lan0-wan0","event":"worker-resumed","worker":3}"#;
        assert_eq!(rest, format!("{} worker-resumed - {json}", process::id()));
        assert!(message(&line("two words")).starts_with("<29>1 2026-11-29T13:15:42.123Z - synproxy "));
    }

    #[test]
    fn a_server_that_is_not_there_loses_messages_and_gets_them_when_it_is_back() {
        let path = std::env::temp_dir().join(format!("spx-syslog-{}", process::id()));
        let mut socket = SyslogSocket::new(Syslog::Socket(path.clone()));
        assert!(socket.deliver(&line("gate")).is_err());
        for _ in 0..2 {
            let server = UnixDatagram::bind(&path).unwrap();
            socket.deliver(&line("gate")).unwrap();
            let mut text = [0; 1024];
            let length = server.recv(&mut text).unwrap();
            assert!(text[..length].starts_with(b"<29>1 "));
            std::fs::remove_file(&path).unwrap();
        }
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut socket = SyslogSocket::new(Syslog::Udp(server.local_addr().unwrap()));
        socket.deliver(&line("gate")).unwrap();
        assert!(server.recv(&mut [0; 1024]).unwrap() > 100);
    }
}
