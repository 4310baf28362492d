//! Reports which servers of services come and go: a thread looks once a second whether workers have counted that, and then asks them.

use super::views;
use crate::dataplane::commands::{Answer, Command, CommandSender};
use crate::metrics::events::{Event, Sender};
use crate::metrics::snapshot::Board;
use crate::process::exit::Failure;
use crate::process::privileges;
use ::control::ServiceState;
use crossbeam::channel::{self, RecvTimeoutError};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tcpstate::Event as Counted;

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The thread, which ends when this is dropped.
pub struct ServiceWatch {
    _ends: channel::Sender<()>,
}

impl ServiceWatch {
    /// Starts it.
    ///
    /// # Errors
    /// When no thread can be created.
    pub fn start(commands: CommandSender, board: Arc<Board>, events: Sender) -> Result<Self, Failure> {
        let (ends, end) = channel::bounded(0);
        let work = move || {
            privileges::enter_control_thread();
            let (mut known, mut counted) = (Known::default(), 0);
            while end.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                let total = board.total();
                let now = total.get(Counted::ServerUp) + total.get(Counted::ServerDown);
                if now == counted {
                    continue;
                }
                // The first worker asks servers, and knows first.
                if let Some(Some(Answer::Services(services))) = commands.send_to(0..1, &Command::Services).pop() {
                    known
                        .update(&views::services([services].into_iter()))
                        .into_iter()
                        .for_each(|event| events.send(event));
                    counted = now;
                }
            }
        };
        thread::Builder::new().name("service-watch".to_owned()).spawn(work).map_err(Failure::Spawn)?;
        Ok(Self { _ends: ends })
    }
}

/// Which servers are up. One that is not known is taken for that, as workers do.
#[derive(Default)]
struct Known(BTreeMap<String, bool>);

impl Known {
    /// What has changed.
    fn update(&mut self, services: &[ServiceState]) -> Vec<Event> {
        let mut changes = Vec::new();
        let mut now = BTreeMap::new();
        for (service, server) in services.iter().flat_map(|own| own.servers.iter().map(move |server| (own, server))) {
            if now.insert(server.server.clone(), server.up).is_some() {
                continue;
            }
            let was_up = self.0.get(&server.server).copied().unwrap_or(true);
            let (server, up) = (server.server.clone(), server.up);
            let service = service.service.clone();
            match (was_up, up) {
                (true, false) => changes.push(Event::ServerDown { server, service }),
                (false, true) => changes.push(Event::ServerUp { server, service }),
                _ => {}
            }
        }
        self.0 = now;
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::control::ServiceServer;

    #[test]
    fn a_server_that_comes_or_goes_is_reported_once() {
        let server = |server: &str, up| ServiceServer {
            server: server.to_owned(),
            up,
            checked: true,
            drained: false,
            known: true,
            weight: 1,
            connections: 0,
            given: 0,
        };
        let service = |name: &str, servers| ServiceState {
            service: name.to_owned(),
            protocol: "tls".to_owned(),
            reach: "nat".to_owned(),
            opened: 0,
            routed: 0,
            refused: 0,
            timed_out: 0,
            servers,
        };
        let mut known = Known::default();
        let named = |event: &Event| event.to_string();
        let mut step = |up: [bool; 2]| {
            let of = |name| service(name, vec![server("a:1", up[0]), server("b:1", up[1])]);
            known.update(&[of("one"), of("other")]).iter().map(named).collect::<Vec<_>>()
        };
        assert_eq!(step([true, true]), [""; 0]);
        assert_eq!(step([true, false]), ["b:1 of one accepts no connections any more"]);
        assert_eq!(step([true, false]), [""; 0]);
        assert_eq!(
            step([false, true]),
            ["a:1 of one accepts no connections any more", "b:1 of one accepts connections again"]
        );
    }
}
