//! What is served over HTTP: the statistics for Prometheus, and a page to look at. Read-only.

use super::api::{ControlApi, Role};
use super::views;
use crate::metrics::http::{Content, Site};
use crate::metrics::prometheus::{self, Identity};
use crate::metrics::snapshot::Board;
use ::control::{DestinationMode, Reply, Request, Status, Top};
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
    identity: Identity,
    /// What the page was given last, and when.
    last: Mutex<Option<(Instant, Vec<u8>)>>,
}

/// What the page shows.
#[derive(Serialize)]
struct Now {
    status: Box<Status>,
    destinations: Vec<DestinationMode>,
    #[serde(flatten)]
    top: Box<Top>,
}

impl StatisticsSite {
    /// The site of the box with this identity.
    pub fn new(board: Arc<Board>, api: Arc<ControlApi>, identity: Identity) -> Self {
        Self { board, api, identity, last: Mutex::default() }
    }

    /// The page's data as JSON; `None` while a worker does not answer.
    fn now(&self) -> Option<Vec<u8>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, data)) = last.as_ref().filter(|(when, _)| when.elapsed() < FRESH) {
            return Some(data.clone());
        }
        let Reply::Status(status) = self.api.answer(Request::Status, Role::Guest) else { return None };
        let Reply::Top(top) = self.api.answer(Request::Top, Role::Guest) else { return None };
        let destinations = self.api.target_status().iter().map(views::destination).collect();
        let data = serde_json::to_vec(&Now { status, destinations, top }).ok()?;
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
                let mut text = prometheus::text(&workers, &self.board.supervisor(), &self.identity);
                text.push_str(&prometheus::targets(&self.api.target_status()));
                Some((prometheus::CONTENT_TYPE, text.into_bytes()))
            }
            "/-/healthy" => Some(("text/plain; charset=utf-8", b"the box runs\n".to_vec())),
            _ => None,
        }
    }
}
