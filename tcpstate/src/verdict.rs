//! What becomes of a frame, and the names under which it is counted.

/// What the worker does with a frame the engine has looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Out of the other port.
    Forward,
    /// Back out of the port it came in by.
    Reflect,
    /// Kept aside until the engine releases this ticket ([`Proxy::next_release`](crate::Proxy::next_release)).
    Hold(Ticket),
    /// Nowhere: back into the pool.
    Drop(DropReason),
}

/// Names a held frame. An index is used again only after its frame was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// The place in the worker's pen, below [`Config::held_frames`](crate::Config::pen_frames).
    pub index: u16,
    /// Which use of the place this is.
    pub generation: u16,
}

/// Declares an enumeration of counted things: a variant, its documentation and its label in logs and metrics.
macro_rules! labelled {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $label:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[doc = $doc])+ $variant,)+ }

        impl $name {
            /// Every one, in order of declaration.
            pub const ALL: &'static [$name] = &[$($name::$variant,)+];

            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name in logs, statistics and metrics.
            pub const fn label(self) -> &'static str {
                match self { $($name::$variant => $label,)+ }
            }

            /// What it means, as one sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $($name::$variant => concat!($($doc,)+),)+ }
            }
        }
    };
}

labelled! {
    /// Why a frame was dropped.
    DropReason {
        /// Shorter than its headers say, a length or version field that contradicts another, or a header below its minimum.
        Malformed = "malformed",
        /// The IPv4 or TCP checksum of a segment that opens, resets or proves a connection is wrong.
        BadChecksum = "bad-checksum",
        /// A fragment that could overlap or hide a TCP header (RFC 1858, RFC 3128).
        BadFragment = "bad-fragment",
        /// A call from or to an address no host can have: multicast, broadcast, loopback, unspecified, or both the same.
        BadAddress = "bad-address",
        /// A combination of flags that no TCP sends (SYN with FIN or RST, none at all).
        BadFlags = "bad-flags",
        /// The source prefix has spent its tokens.
        RateLimited = "rate-limited",
        /// The number acknowledged is no cookie of ours, or an old one.
        BadCookie = "bad-cookie",
        /// The segment belongs to no flow we know.
        NoFlow = "no-flow",
        /// The flow's state has no use for this segment.
        WrongState = "wrong-state",
        /// A reset whose number the receiver would not accept (RFC 5961 section 3).
        BadReset = "bad-reset",
        /// Answered on the endpoint's behalf with an acknowledgement that challenges the sender (RFC 5961).
        Challenged = "challenged",
        /// Every place in the flow table is taken by a connection with a better claim.
        TableFull = "table-full",
        /// The answer would not fit the frame's buffer.
        NoRoom = "no-room",
        /// A connection whose smallest segment the cookie cannot express.
        MssTooSmall = "mss-too-small",
        /// Used up by the engine: the segment did its work and has no receiver.
        Consumed = "consumed",
        /// Early data whose connection ended before its server had answered, or for which the pen had no place.
        NotHeld = "not-held",
        /// An ICMP error whose quoted numbers are not in flight (RFC 5927 section 4.1).
        IcmpNotInFlight = "icmp-not-in-flight",
        /// An ICMP error that quotes a segment of ours, or of no connection while policy drops those.
        IcmpUnmatched = "icmp-unmatched",
        /// A source quench about a proxied connection: no host heeds it any more, nor may it (RFC 6633).
        SourceQuench = "source-quench",
        /// A later fragment whose first fragment did not pass, while policy drops those.
        StrayFragment = "stray-fragment",
        /// A signed SYN while policy drops those, or a SYN to be passed unanswered beyond the rate for those.
        NotPassed = "not-passed",
    }
}

labelled! {
    /// An event that is counted, besides the drops.
    Event {
        /// SYNs from the WAN answered with a SYN-ACK.
        SynAnswered = "syn-answered",
        /// Repeated SYNs answered from the SYN cache.
        SynRepeated = "syn-repeated",
        /// Half-open entries written to the SYN cache.
        CacheStored = "cache-stored",
        /// SYNs answered without an entry because the SYN cache had no place.
        CacheFull = "cache-full",
        /// Handshakes proved by an entry of the SYN cache.
        CacheHit = "cache-hit",
        /// Handshakes proved by a cookie.
        CookieGood = "cookie-good",
        /// SYNs admitted on their second appearance although their prefix had spent its tokens.
        SecondChance = "second-chance",
        /// SYNs sent to a server, repetitions included.
        Dialled = "dialled",
        /// SYNs to a server repeated by the timer.
        DialRepeated = "dial-repeated",
        /// Proxied connections joined: the server has answered.
        Spliced = "spliced",
        /// Dialled servers that refused with a reset.
        Refused = "refused",
        /// Dialled servers that never answered.
        DialTimeout = "dial-timeout",
        /// Connections opened from the LAN.
        Direct = "direct",
        /// Window updates repeated because the client had shown no sign of the first.
        UpdateRepeated = "update-repeated",
        /// Repeated SYN-ACKs of a server acknowledged again.
        AnswerRepeated = "answer-repeated",
        /// Challenge acknowledgements sent (RFC 5961).
        Challenge = "challenge",
        /// Flows removed by their timer.
        Expired = "expired",
        /// Closing flows removed to make room.
        EvictedClosing = "evicted-closing",
        /// Half-open flows, and those whose server has not answered yet, removed to make room.
        EvictedHalfOpen = "evicted-half-open",
        /// Segments the engine wanted to send and had no spare frame for.
        NoSpareFrame = "no-spare-frame",
        /// Frames passed on because they are no TCP (ARP, ICMP, UDP and the rest).
        Bridged = "bridged",
        /// Later fragments passed on behind their first.
        Fragment = "fragment",
        /// Later fragments passed on although no first one was seen: they cannot reach a TCP header.
        StrayFragment = "stray-fragment",
        /// ICMP errors translated, or found to belong to a connection that is passed through.
        IcmpTranslated = "icmp-translated",
        /// ICMP errors passed on that quote TCP of no connection we know.
        IcmpUnmatched = "icmp-unmatched",
        /// ICMP errors of our own: the server takes smaller segments than its clients were told.
        IcmpTooBig = "icmp-too-big",
        /// Segments held until their server has answered.
        Held = "held",
        /// Held segments released to their server.
        Released = "released",
        /// Handshakes whose last acknowledgement was withheld for the client's distance.
        AckWithheld = "ack-withheld",
        /// SYNs to a port remembered as closed, answered with a reset.
        ClosedPort = "closed-port",
        /// Connections from the WAN passed unanswered: signed, or with an extension that policy passes.
        Passed = "passed",
        /// Connections from the WAN passed unanswered to a port nothing was known of.
        Introduced = "introduced",
        /// Connections from the WAN passed unanswered because the box is drained.
        Drained = "drained",
        /// Running connections adopted.
        Adopted = "adopted",
        /// Segments of unknown connections answered with a reset.
        StrayReset = "stray-reset",
        /// Acknowledgements dropped untested: no SYN of these ends was answered lately.
        Unasked = "unasked",
        /// Connections that had never carried data, removed to make room.
        EvictedSilent = "evicted-silent",
        /// Congestion marks answered for an end that does not speak ECN.
        EcnLent = "ecn-lent",
        /// TCP segments from the LAN that were passed.
        LanSegment = "lan-segment",
        /// TCP segments from the WAN that were passed.
        WanSegment = "wan-segment",
    }
}

/// Everything the engine counts. One writer; a worker copies them out for others to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    drops: [u64; DropReason::COUNT],
    events: [u64; Event::COUNT],
}

impl Default for Counters {
    fn default() -> Self {
        Self { drops: [0; DropReason::COUNT], events: [0; Event::COUNT] }
    }
}

impl Counters {
    /// Frames dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// How often this happened.
    pub fn happened(&self, event: Event) -> u64 {
        self.events[event as usize]
    }

    pub(crate) fn drop(&mut self, reason: DropReason) -> Verdict {
        self.drops[reason as usize] += 1;
        Verdict::Drop(reason)
    }

    pub(crate) fn count(&mut self, event: Event) {
        self.events[event as usize] += 1;
    }
}
