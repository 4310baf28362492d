//! The host that the first request of an HTTP connection names: of HTTP/1 (RFC 9112 section 3.2), and of HTTP/2 without TLS ([`http2`]). Later requests of the same
//! connection may name others: they go to the same server.

use super::names::{Name, of_authority};
use super::{Asked, NoRequest, Reading, http2};

/// The header fields of a request that is read.
const MOST_FIELDS: usize = 100;

/// What these first bytes of a connection say; `most` can be read, and `fresh` of them are new since the last time.
pub fn read(bytes: &[u8], fresh: usize, most: usize) -> Reading {
    match read_some(bytes, fresh) {
        // What a head that is too long would need never comes.
        Reading::More if bytes.len() >= most => Reading::Other,
        reading => reading,
    }
}

fn read_some(bytes: &[u8], fresh: usize) -> Reading {
    let name = match bytes.starts_with(http2::BEGINNING) {
        true => http2::read(bytes),
        false => with_request(bytes, fresh, |request, _| host(request)),
    };
    match name {
        Ok(name) => Reading::Asks(Asked { name, offers: 0 }),
        Err(NoRequest::More) => Reading::More,
        Err(NoRequest::Other) => Reading::Other,
    }
}

/// Reads the head of the first request, whose length is given too, with `read`.
///
/// # Errors
/// If it is not there as a whole, or none.
pub(super) fn with_request<T>(
    bytes: &[u8],
    fresh: usize,
    read: impl FnOnce(&httparse::Request, usize) -> T,
) -> Result<T, NoRequest> {
    // A request may begin behind an empty line (RFC 9112 section 2.2); its method is a token in upper case in all that is in use.
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'));
    let Some(start) = start else { return Err(if bytes.len() > 4 { NoRequest::Other } else { NoRequest::More }) };
    let line = &bytes[start..];
    let method = line.iter().position(|byte| !byte.is_ascii_uppercase() && !matches!(byte, b'-' | b'_'));
    match method {
        Some(0) => return Err(NoRequest::Other),
        Some(at) if line[at] != b' ' => return Err(NoRequest::Other),
        None if line.len() > 32 => return Err(NoRequest::Other),
        _ => {}
    }
    if !has_end(bytes, fresh) {
        return Err(NoRequest::More);
    }
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => Ok(read(&request, len)),
        Ok(httparse::Status::Partial) => Err(NoRequest::More),
        _ => Err(NoRequest::Other),
    }
}

/// Whether an empty line ends among the new bytes.
fn has_end(bytes: &[u8], fresh: usize) -> bool {
    // Three bytes of it may have come before.
    let from = bytes.len().saturating_sub(fresh + 3);
    let new = &bytes[from..];
    new.windows(2).any(|pair| pair == b"\n\n") || new.windows(3).any(|three| three == b"\n\r\n")
}

/// The host of a request: that of its target, if that is a whole URI (RFC 9112 section 3.2.2), else that of its Host field, of which there must be one.
fn host(request: &httparse::Request) -> Option<Name> {
    let target = request.path?;
    if let Some((_, rest)) = target.split_once("://").filter(|_| !target.starts_with('/')) {
        return of_authority(rest.split(['/', '?', '#']).next()?.as_bytes());
    }
    if request.method == Some("CONNECT") {
        return of_authority(target.as_bytes());
    }
    let mut hosts = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("host"));
    let host = hosts.next()?.value;
    if hosts.next().is_some() { None } else { of_authority(host) }
}
