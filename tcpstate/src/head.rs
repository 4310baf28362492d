//! The engine's view of a frame: the bytes of its first buffer, with room to grow at both ends.

/// The head of a frame, edited where it lies.
///
/// `total` exceeds `len` when the frame lies in several buffers (a jumbo frame): then only the
/// first holds headers, the payload behind them is out of sight, and checksums can only be patched.
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

    /// Whether the whole frame is in sight.
    pub fn is_whole(&self) -> bool {
        self.total == self.len
    }

    /// The visible bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.start + self.len]
    }

    /// The visible bytes, to edit.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..self.start + self.len]
    }

    /// Makes the frame `len` bytes long in one piece: cuts its tail, or grows it into the buffer's spare room.
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

    /// Opens a gap of `gap` bytes at offset `at` by moving the bytes before it toward the buffer's beginning
    /// (the payload stays where it is). Returns false, changing nothing, if there is too little headroom.
    #[must_use]
    pub fn open_gap(&mut self, at: usize, gap: usize) -> bool {
        if gap > self.start || at > self.len {
            return false;
        }
        self.buffer.copy_within(self.start..self.start + at, self.start - gap);
        self.start -= gap;
        self.len += gap;
        self.total += gap;
        true
    }
}
