//! The body of the fuzz target for what a client may send to the control socket and the control port. It takes the fuzzer's input and panics when a
//! promise is broken.

use crate::wire::{self, Operation};
use crate::{Line, Request, read_line};
use std::io::BufReader;

/// Any bytes, as lines of the control socket and as operations of the control port: what is understood is written and understood again as the same.
pub fn requests(data: &[u8]) {
    let (&first, data) = data.split_first().unwrap_or((&0, &[]));
    let (most, buffer) = (64 << (first & 7), 1 + usize::from(first >> 3));
    let (mut from, mut line) = (BufReader::with_capacity(buffer, data), Vec::new());
    let mut left = data.len();
    while let Line::Whole = read_line(&mut from, &mut line, most).expect("a slice can be read") {
        assert!(line.len() <= most && line.len() < left && !line.contains(&b'\n'));
        left -= line.len() + 1;
        if let Ok(request) = serde_json::from_slice::<Request>(&line) {
            let written = serde_json::to_vec(&request).expect("a request can be written");
            assert_eq!(serde_json::from_slice::<Request>(&written).expect("it can be read"), request);
            // Every request has a role that may send it.
            let _ = request.access();
        }
    }
    assert!(line.len() <= most);
    let mut rest = data;
    while let Some((operation, length)) = wire::read(rest) {
        rest = &rest[length..];
        if matches!(operation, Operation::Unknown(_)) {
            continue;
        }
        let mut written = Vec::new();
        wire::write(&operation, &mut written);
        assert_eq!(wire::read(&written), Some((operation, written.len())));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_request_is_understood_as_it_is_written_or_refused() {
        harness::replay("requests", super::requests);
    }
}
