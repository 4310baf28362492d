//! The verdicts of the engine on a frame, and what there is to count.

/// What the worker does with a frame the engine has looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Out of the other port.
    Forward,
    /// Back out of the port it came in by.
    Reflect,
    /// Stored until the engine releases this ticket ([`Proxy::next_release`](crate::Proxy::next_release)).
    Hold(Ticket),
    /// Nowhere: back into the pool.
    Drop(DropReason),
}

/// Names a held frame. An index is used again only after its frame was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// The slot in the worker's hold buffer, below [`Config::held_frames`](crate::Config::held_frames).
    pub index: u16,
    /// Which use of the slot this is.
    pub generation: u16,
}

crate::metrics! {
    /// Why a frame was dropped.
    pub enum DropReason: Counter, Frames {
        /// Shorter than its headers say, a length or version field that contradicts another, or a header below its minimum.
        Malformed = "malformed",
        /// The IPv4 or TCP checksum of a segment that opens, resets or proves a connection is wrong.
        BadChecksum = "bad-checksum",
        /// A fragment that could overlap or hide a TCP header (RFC 1858, RFC 3128).
        BadFragment = "bad-fragment",
        /// A SYN from or to an address no host can have: multicast, broadcast, loopback, unspecified, or source and destination the same.
        BadAddress = "bad-address",
        /// A combination of flags that no TCP sends: SYN with FIN or RST, or no flag at all.
        BadFlags = "bad-flags",
        /// A SYN whose source prefix has exceeded its rate of SYNs, or an ACK whose cookie was not checked because its source prefix, or all sources
        /// together, have spent their budget of failed checks, and which acknowledges no SYN-ACK that the box remembers.
        RateLimited = "rate-limited",
        /// The acknowledgement number is not a valid SYN cookie, or the cookie has expired.
        BadCookie = "bad-cookie",
        /// The segment belongs to no known flow.
        NoFlow = "no-flow",
        /// A SYN, or a segment from the LAN, of no known flow and for a station on the side it came from: a switch or hub has flooded it.
        Elsewhere = "elsewhere",
        /// The segment is not acceptable in the flow's state.
        WrongState = "wrong-state",
        /// A reset whose sequence number the receiver would not accept (RFC 5961 section 3).
        BadReset = "bad-reset",
        /// A segment that calls for a challenge ACK (RFC 5961) within half a second of the last one for its flow.
        Challenged = "challenged",
        /// A segment that opens a connection without proof, or belongs to one that was running before, found the flow table full of flows that may not give
        /// way to it.
        TableFull = "table-full",
        /// The answer does not fit the frame's buffer.
        NoRoom = "no-room",
        /// The MSS of the client is smaller than any the cookie can express.
        MssTooSmall = "mss-too-small",
        /// Not a loss: the engine consumed the segment, which has no receiver.
        Consumed = "consumed",
        /// Early data whose connection ended before its server answered, or that found the hold queue full.
        NotHeld = "not-held",
        /// An ICMP error whose quoted sequence numbers are not in flight (RFC 5927 section 4.1).
        IcmpNotInFlight = "icmp-not-in-flight",
        /// An ICMP error that quotes a segment the box sent itself, or of no known connection while policy drops those.
        IcmpUnmatched = "icmp-unmatched",
        /// An ICMP source quench about a proxied connection; hosts must ignore it (RFC 6633).
        SourceQuench = "source-quench",
        /// A non-first fragment whose first fragment did not pass, while policy drops those.
        StrayFragment = "stray-fragment",
        /// A SYN with an MD5 or AO signature while policy drops those, or a SYN or SYN-ACK to pass through beyond the rate for those.
        NotPassed = "not-passed",
        /// A SYN to a port that was silent to clients of the same network lately, or of which nothing else is known, and to which another SYN has passed
        /// within the last second.
        SilentPort = "silent-port",
        /// A SYN, or an acknowledgement that proves its client, from a client in the list `block`.
        Blocked = "blocked",
        /// A frame for an address of the box that is neither TCP nor an echo request.
        NotServed = "not-served",
        /// A SYN beyond a limit on SYN-ACKs, or one to pass unanswered beyond a limit on connections: which one the events `over-…` tell.
        OverLimit = "over-limit",
    }
}

crate::metrics! {
    /// What the engine counts besides the drops.
    pub enum Event: Counter, Segments {
        /// SYNs from the WAN that reached a worker, whatever became of them, or that a program of the kernel answered.
        WanSyn = "wan-syn",
        /// SYNs from the WAN answered with a SYN-ACK.
        SynAnswered = "syn-answered",
        /// Retransmitted SYNs answered from the SYN cache.
        SynRepeated = "syn-repeated",
        /// Entries written to the SYN cache.
        CacheStored = "cache-stored" in Connections,
        /// SYNs answered with a cookie because the SYN cache was full.
        CacheFull = "cache-full",
        /// Handshakes completed from an entry of the SYN cache.
        CacheHit = "cache-hit" in Connections,
        /// Handshakes completed from a valid SYN cookie.
        CookieGood = "cookie-good" in Connections,
        /// Handshakes completed from a valid SYN cookie although its source prefix had spent its budget of failed checks, because the box remembered
        /// the SYN-ACK: somebody guesses in the name of that prefix.
        CookieRemembered = "cookie-remembered" in Connections,
        /// SYNs dropped because their source prefix had exceeded its rate: they are among the drops by `rate-limited`.
        SynLimited = "syn-limited",
        /// Retransmitted SYNs admitted although their source prefix had exceeded its rate.
        SecondChance = "second-chance",
        /// SYNs sent to servers, retransmissions included.
        Dialled = "dialled",
        /// SYNs to servers retransmitted by the timer.
        DialRepeated = "dial-repeated",
        /// Proxied connections established: the server has answered.
        Spliced = "spliced" in Connections,
        /// Connections that the server refused with a reset.
        Refused = "refused" in Connections,
        /// Connections whose server never answered.
        DialTimeout = "dial-timeout" in Connections,
        /// Proxied connections that both ends opened at once: the LAN's SYN was answered in the client's name.
        SimultaneousOpen = "simultaneous-open" in Connections,
        /// Connections opened from the LAN, which pass through.
        Direct = "direct" in Connections,
        /// Window updates retransmitted because the client had not reacted to the first.
        UpdateRepeated = "update-repeated",
        /// Retransmitted SYN-ACKs of a server that were acknowledged again.
        AnswerRepeated = "answer-repeated",
        /// Challenge ACKs sent (RFC 5961).
        Challenge = "challenge",
        /// Connections that went on after an RST that had been forwarded: their receiver did not accept it, so it was forged.
        ResetOutlived = "reset-outlived" in Connections,
        /// Flows removed by their timer.
        Expired = "expired" in Flows,
        /// Closing flows evicted for a new one.
        EvictedClosing = "evicted-closing" in Flows,
        /// Half-open flows, and those whose server has not answered yet, evicted for a new one.
        EvictedHalfOpen = "evicted-half-open" in Flows,
        /// Segments of the engine that were not sent because no frame was free.
        NoSpareFrame = "no-spare-frame",
        /// Frames forwarded because they are not TCP: ARP, ICMP, UDP and others.
        Bridged = "bridged" in Frames,
        /// Non-first fragments forwarded after their first fragment.
        Fragment = "fragment" in Frames,
        /// Non-first fragments forwarded although no first fragment was seen: they cannot overlap a TCP header.
        StrayFragment = "stray-fragment" in Frames,
        /// ICMP errors translated, or forwarded because they belong to a connection that passes through.
        IcmpTranslated = "icmp-translated" in Messages,
        /// ICMP errors forwarded that quote TCP of no known connection.
        IcmpUnmatched = "icmp-unmatched" in Messages,
        /// ICMP errors sent by the box because a server accepts smaller segments than its clients were offered.
        IcmpTooBig = "icmp-too-big" in Messages,
        /// Segments held until their server answers.
        Held = "held",
        /// Held segments released to their server.
        Released = "released",
        /// Handshakes whose last ACK to the server was withheld until the client's round-trip time had passed.
        AckWithheld = "ack-withheld" in Connections,
        /// SYNs answered with a reset because the port recently refused.
        ClosedPort = "closed-port",
        /// SYNs answered with the ICMP error that the last SYN to the port met.
        UnreachablePort = "unreachable-port",
        /// SYNs passed to a port that lately refused or was silent, to learn whether it still does.
        Retried = "retried",
        /// Clients that proved themselves by resetting what the box's SYN-ACK opened, as half-open health checks do.
        ResetProved = "reset-proved" in Connections,
        /// Servers that the box asked with a SYN in place of such a client.
        ServerTried = "server-tried" in Connections,
        /// Ports found silent: to a connection, to such a client, or to a client's own SYN.
        Silent = "silent" in Times,
        /// Connections from the WAN passed through because of a signature or an extension that policy passes.
        Passed = "passed" in Connections,
        /// Connections from the WAN passed through because the server's options were not known yet.
        Introduced = "introduced" in Connections,
        /// Connections from the WAN passed through untouched because their source has proved itself lately.
        ProvedPassed = "proved-passed" in Connections,
        /// Connections to services whose clients have proved themselves.
        ServiceOpened = "service-opened" in Connections,
        /// Segments whose bytes were kept until the server of a service is known.
        Gathered = "gathered",
        /// Connections to services whose server was chosen.
        ServiceRouted = "service-routed" in Connections,
        /// Connections to services that no server was found for: nobody has the name, or all have it that cannot be reached under a second key.
        ServiceRefused = "service-refused" in Connections,
        /// Connections to services whose clients did not say in time what they ask for.
        ServiceTimeout = "service-timeout" in Connections,
        /// Times at which first bytes were sent to a server again because it had not acknowledged them.
        GatheredRepeated = "gathered-repeated" in Times,
        /// Names that clients wanted to be connected to, and that were looked up.
        NameAsked = "name-asked",
        /// Times at which what the box had said to a client in its own name was sent again because the client had not acknowledged it.
        SaidRepeated = "said-repeated" in Times,
        /// Connections that were reset because a network with fewer of them needed the place of their first bytes.
        GatheredSpared = "gathered-spared" in Connections,
        /// Connections to services that found every source port of the box in use, or at rest after its last connection.
        PoolExhausted = "pool-exhausted" in Connections,
        /// Attempts to connect to servers of services, by which the box finds out whether they accept connections.
        ServerAsked = "server-asked" in Times,
        /// Times at which a server of a service was found to accept connections again.
        ServerUp = "server-up" in Times,
        /// Times at which a server of a service was found not to accept connections any more.
        ServerDown = "server-down" in Times,
        /// Questions of clients and servers for the Ethernet address of an address of the box that were answered.
        NeighbourAnswered = "neighbour-answered" in Frames,
        /// Questions of the box for the Ethernet address of a server of a service.
        NeighbourAsked = "neighbour-asked" in Frames,
        /// Announcements of the box's own addresses.
        AddressAnnounced = "address-announced" in Frames,
        /// Frames in which another station claims an address of the box.
        AddressConflict = "address-conflict" in Frames,
        /// Echo requests for addresses of the box that were answered.
        EchoAnswered = "echo-answered" in Frames,
        /// SYNs of sources that have proved themselves lately that did not pass, because a budget for what passes in their name was spent: they are treated
        /// like those of any other.
        ProvedSpent = "proved-spent",
        /// Connections from the WAN passed through because the box is draining.
        Drained = "drained" in Connections,
        /// SYNs from the WAN passed to their servers because the mode of their destination passes them.
        PassedByMode = "passed-by-mode",
        /// SYNs passed in mode `observe` that would have been answered from the SYN cache.
        WouldBeCached = "would-be-cached",
        /// SYNs passed in mode `observe` that would have been answered with a cookie alone.
        WouldGetCookie = "would-get-cookie",
        /// SYNs passed in mode `observe` that would have been refused, as their port lately refused or was silent.
        WouldBeRefused = "would-be-refused",
        /// SYNs passed in mode `observe` that would have been dropped, as their source prefix had exceeded its rate.
        WouldBeLimited = "would-be-limited",
        /// SYNs from the WAN passed through because their hop limit ends before their server: a router answers them.
        Expiring = "expiring",
        /// Connections of which only one direction crosses the box, passed and followed by that.
        HalfSeen = "half-seen" in Connections,
        /// Connections from the WAN passed through because their server answers another way.
        Bypassed = "bypassed" in Connections,
        /// Servers found to answer another way than through the box (direct server return).
        DirectReturn = "direct-return" in Times,
        /// Running connections adopted.
        Adopted = "adopted" in Connections,
        /// SYN-ACKs from the LAN passed although the box has sent no SYN: the client's came another way.
        ForeignAnswer = "foreign-answer",
        /// Segments of unknown connections answered with a reset.
        StrayReset = "stray-reset",
        /// ACKs from the WAN that cannot bear a cookie, because no SYN of this 4-tuple was answered recently: not checked, and treated as segments of
        /// the connection there is, or of an unknown one.
        Unasked = "unasked",
        /// SYNs that a program of the kernel answered: they are among `syn-answered`.
        KernelAnswered = "kernel-answered",
        /// ACKs of SYNs that nobody answered which a program of the kernel dropped: they are among `unasked`, and among the drops by `bad-cookie`.
        KernelDropped = "kernel-dropped",
        /// Connections that never carried data, evicted for a new one.
        EvictedSilent = "evicted-silent" in Flows,
        /// Connections that had been idle, evicted for a new one.
        EvictedIdle = "evicted-idle" in Flows,
        /// Connections whose client took nothing of what its server had for it, evicted for a new one.
        EvictedStalled = "evicted-stalled" in Flows,
        /// Connections that moved hardly any data, evicted for a new one.
        EvictedSlow = "evicted-slow" in Flows,
        /// Clients that had proved themselves and were reset, because no flow of the full table could give way to them.
        TurnedAway = "turned-away" in Connections,
        /// Congestion marks answered for an endpoint without ECN.
        EcnLent = "ecn-lent",
        /// Connections whose two directions bear different VLAN tags.
        OtherVlan = "other-vlan" in Connections,
        /// SYNs passed because a routing header, source route or home address option names their end.
        Rerouted = "rerouted",
        /// Connections from the WAN passed through because their client is in the list `allow`.
        Allowed = "allowed" in Connections,
        /// SYNs of clients in the list `always`.
        AlwaysProxied = "always-proxied",
        /// Connections reset because their client was put in the list `block` while they ran.
        BlockedReset = "blocked-reset" in Connections,
        /// Connections refused because the client's address, or a network that it is in, has reached its limit on new connections a second.
        OverSourceRate = "over-source-rate" in Connections,
        /// Connections refused because the client's address, or a network that it is in, has reached its limit on connections that run.
        OverSourceFlows = "over-source-flows" in Connections,
        /// Connections refused because the server's port has reached its limit on new connections a second.
        OverDestinationRate = "over-destination-rate" in Connections,
        /// Connections refused because the server's port has reached its limit on connections that run.
        OverDestinationFlows = "over-destination-flows" in Connections,
        /// SYNs left unanswered because all SYN-ACKs of this second were sent.
        OverSynAcks = "over-syn-acks",
        /// SYNs left unanswered because all SYN-ACKs of this second in the name of the server's port were sent.
        OverDestinationSynAcks = "over-destination-syn-acks",
        /// Connections handed down to the kernel, which forwards their segments by itself.
        HandedDown = "handed-down" in Connections,
        /// Connections that the kernel handed up again, at a segment that it does not forward.
        HandedUp = "handed-up" in Connections,
        /// Attempts to hand a connection down for which the map had no room: one in a millisecond and worker at most.
        NotHandedDown = "not-handed-down",
        /// TCP segments from the LAN that were not dropped: forwarded, answered or held.
        LanSegment = "lan-segment",
        /// TCP segments from the WAN that were not dropped: forwarded, answered or held.
        WanSegment = "wan-segment",
    }
}

crate::metrics! {
    /// What the engine times, to a millisecond.
    pub enum Timing: Histogram, Nanoseconds {
        /// From a SYN that the SYN cache keeps to the acknowledgement that proves its client: the client's round-trip time. A cookie keeps no time.
        ClientHandshake = "client-handshake",
        /// From the first SYN to a server to its SYN-ACK, retransmissions included.
        ServerConnect = "server-connect",
    }
}
