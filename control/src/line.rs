//! Reading and writing lines of JSON, one value per line, of bounded length.

use serde::Serialize;
use std::io::{self, BufRead, ErrorKind, Write};

/// The longest request, in bytes: a jumbo frame in hexadecimal digits, with room to spare.
pub const MAX_REQUEST: usize = 65_536;

/// The longest request of a client that may send [`Request::LoadConfig`](crate::Request::LoadConfig), in bytes: the longest configuration, every
/// character of it escaped.
pub const MAX_LOAD: usize = (2 << 20) + MAX_REQUEST;

/// The longest reply, in bytes.
pub const MAX_REPLY: usize = 16 << 20;

/// The result of reading a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// A line was read, without its line feed.
    Whole,
    /// The line is longer than allowed, and was read only in part.
    TooLong,
    /// The stream has ended; an incomplete line is dropped.
    End,
}

/// Reads up to the next line feed into `line`, which is cleared first and never holds more than `most` bytes.
///
/// # Errors
/// If reading fails.
pub fn read_line(from: &mut impl BufRead, line: &mut Vec<u8>, most: usize) -> io::Result<Line> {
    line.clear();
    loop {
        let bytes = match from.fill_buf() {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if bytes.is_empty() {
            return Ok(Line::End);
        }
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let piece = &bytes[..end.unwrap_or(bytes.len())];
        if line.len() + piece.len() > most {
            return Ok(Line::TooLong);
        }
        line.extend_from_slice(piece);
        let used = piece.len() + usize::from(end.is_some());
        from.consume(used);
        if end.is_some() {
            return Ok(Line::Whole);
        }
    }
}

/// Writes `value` as one line, in one call.
///
/// # Errors
/// If writing fails.
pub fn write_line(to: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    to.write_all(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str, most: usize, buffer: usize) -> Vec<(Line, String)> {
        let mut from = io::BufReader::with_capacity(buffer, text.as_bytes());
        let (mut line, mut lines) = (Vec::new(), Vec::new());
        loop {
            let came = read_line(&mut from, &mut line, most).unwrap();
            lines.push((came, String::from_utf8(line.clone()).unwrap()));
            if came != Line::Whole {
                return lines;
            }
        }
    }

    #[test]
    fn lines_come_one_by_one_however_they_arrive() {
        for buffer in 1..12 {
            let came = lines("ab\n\ncdefg\nh", 5, buffer);
            let whole = |text: &str| (Line::Whole, text.to_owned());
            assert_eq!(came, [whole("ab"), whole(""), whole("cdefg"), (Line::End, "h".to_owned())]);
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_never_kept() {
        for buffer in 1..12 {
            let (came, kept) = lines("abcdefghijkl\n", 5, buffer).remove(0);
            assert_eq!(came, Line::TooLong);
            assert!(kept.len() <= 5);
        }
    }
}
