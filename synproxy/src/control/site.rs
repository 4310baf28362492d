//! What is served over HTTP: the statistics for Prometheus, and a page to look at. Read-only.

use super::api::{Client, ControlApi};
use crate::metrics::http::{Content, Site};
use crate::metrics::prometheus::{self, Identity};
use crate::metrics::snapshot::Board;
use ::control::{Reply, Request, Role, Status, Top};
use serde::Serialize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The page, complete: it fetches nothing but `now.json`.
const PAGE: &str = include_str!("page.html");

/// For how long the page's data are given again, so that many who look cost the workers no more than one.
const FRESH: Duration = Duration::from_millis(500);

/// See the module.
pub struct StatisticsSite {
    board: Arc<Board>,
    api: Arc<ControlApi>,
    identity: Mutex<Identity>,
    /// What the page was given last, and when.
    last: Mutex<Option<(Instant, Vec<u8>)>>,
}

/// What the page shows.
#[derive(Serialize)]
struct Now {
    status: Box<Status>,
    #[serde(flatten)]
    top: Box<Top>,
}

impl StatisticsSite {
    /// The site of the box with this identity.
    pub fn new(board: Arc<Board>, api: Arc<ControlApi>, identity: Identity) -> Self {
        Self { board, api, identity: Mutex::new(identity), last: Mutex::default() }
    }

    /// From now on the box has this configuration: the file, if there is one, and a hash of what it says.
    pub fn set_config(&self, config: (Option<String>, u64)) {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).config = config;
    }

    /// The page's data as JSON; `None` while a worker does not answer.
    fn now(&self) -> Option<Vec<u8>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, data)) = last.as_ref().filter(|(when, _)| when.elapsed() < FRESH) {
            return Some(data.clone());
        }
        let anybody = Client { user: rustix::process::geteuid().as_raw(), role: Role::Read };
        let Reply::Status(status) = self.api.serve(Request::Status, anybody) else { return None };
        let Reply::Top(top) = self.api.serve(Request::Top, anybody) else { return None };
        let data = serde_json::to_vec(&Now { status, top }).ok()?;
        *last = Some((Instant::now(), data.clone()));
        Some(data)
    }
}

impl Site for StatisticsSite {
    fn content(&self, path: &str) -> Option<Content> {
        match path {
            "/" => Some(("text/html; charset=utf-8", PAGE.into())),
            "/now.json" => Some(("application/json", self.now()?)),
            "/metrics" => {
                let workers: Vec<_> = self.board.workers().collect();
                let identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner).clone();
                Some((
                    prometheus::CONTENT_TYPE,
                    prometheus::text(&workers, &self.board.supervisor(), &identity).into_bytes(),
                ))
            }
            "/-/healthy" => Some(("text/plain; charset=utf-8", b"the box runs\n".to_vec())),
            _ => None,
        }
    }
}
