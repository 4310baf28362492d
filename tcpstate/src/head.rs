//! The engine's view of a frame: the bytes of its first buffer, with headroom and tailroom.

/// The first bytes of a frame, edited in place.
///
/// A jumbo frame may take several buffers: then `total` exceeds `len`, only the bytes of the first buffer, with all headers, are visible,
/// and checksums can only be patched.
pub struct Head<'a> {
    buffer: &'a mut [u8],
    start: usize,
    len: usize,
    total: usize,
}

impl<'a> Head<'a> {
    /// A head of `len` bytes that begins `start` bytes into `buffer`, of a frame of `total` bytes.
    ///
    /// # Panics
    /// If `start + len` lies beyond the buffer or `total < len`.
    pub fn new(buffer: &'a mut [u8], start: usize, len: usize, total: usize) -> Self {
        assert!(start + len <= buffer.len() && total >= len, "the head must lie in its buffer");
        Self { buffer, start, len, total }
    }

    /// A head that fills the first `len` bytes of `buffer`: a frame in one piece, without headroom.
    ///
    /// # Panics
    /// If `len` exceeds the buffer.
    pub fn whole(buffer: &'a mut [u8], len: usize) -> Self {
        Self::new(buffer, 0, len, len)
    }

    /// Where the frame begins in its buffer.
    pub fn start(&self) -> usize {
        self.start
    }

    /// Bytes of the frame in this buffer.
    #[expect(clippy::len_without_is_empty, reason = "an empty head is malformed like any short one")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes of the whole frame, in this buffer and those that follow it.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Whether the whole frame is visible.
    pub fn is_whole(&self) -> bool {
        self.total == self.len
    }

    /// The visible bytes.
    #[inline(always)]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.start + self.len]
    }

    /// The visible bytes, to edit.
    #[inline(always)]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..self.start + self.len]
    }

    /// Makes the frame `len` bytes long in one buffer: truncates it, or grows it into the tailroom.
    /// New bytes hold whatever the buffer held. Returns false, changing nothing, if the buffer is too small.
    #[must_use]
    pub fn resize(&mut self, len: usize) -> bool {
        if self.start + len > self.buffer.len() {
            return false;
        }
        self.len = len;
        self.total = len;
        true
    }

    /// Opens a gap of `gap` bytes at offset `at`. Moves the bytes before it into the headroom, so that the payload stays in place; without
    /// enough headroom, and if the whole frame is visible, moves those behind it into the tailroom. Returns false, changing nothing, if
    /// there is room at neither end. The gap holds whatever the buffer held.
    #[must_use]
    pub fn open_gap(&mut self, at: usize, gap: usize) -> bool {
        if at > self.len {
            return false;
        }
        if gap <= self.start {
            self.buffer.copy_within(self.start..self.start + at, self.start - gap);
            self.start -= gap;
        } else {
            let end = self.start + self.len;
            if !self.is_whole() || end + gap > self.buffer.len() {
                return false;
            }
            self.buffer.copy_within(self.start + at..end, self.start + at + gap);
        }
        self.len += gap;
        self.total += gap;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Opens a gap of two bytes at offset 1 of "abc", which begins at `start` of `room` bytes.
    fn gap(start: usize, room: usize, total: usize) -> Option<(usize, Vec<u8>)> {
        let mut buffer = vec![0; room];
        buffer[start..start + 3].copy_from_slice(b"abc");
        let mut head = Head::new(&mut buffer, start, 3, total);
        head.open_gap(1, 2).then(|| {
            assert_eq!((head.len(), head.total()), (5, total + 2));
            head.bytes_mut()[1..3].copy_from_slice(b"--");
            (head.start(), head.bytes().to_vec())
        })
    }

    #[test]
    fn a_gap_takes_headroom_then_tailroom() {
        assert_eq!(gap(2, 5, 3), Some((0, b"a--bc".to_vec())));
        assert_eq!(gap(1, 6, 3), Some((1, b"a--bc".to_vec())));
        assert_eq!(gap(0, 5, 3), Some((0, b"a--bc".to_vec())));
        assert_eq!(gap(1, 5, 3), None, "one byte at either end");
        assert_eq!(gap(0, 9, 10), None, "what follows lies in other buffers");
        assert_eq!(gap(2, 5, 10), Some((0, b"a--bc".to_vec())));
    }
}
