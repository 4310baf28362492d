//! The one table of everything the appliance counts and measures.
//!
//! [`Metric`] names every value, and [`TABLE`] describes it: name, kind, unit, meaning, writer. Whatever shows statistics is made from
//! this table: the cells of a [`Snapshot`](super::snapshot::Snapshot), the line every two seconds, the table at exit,
//! `synctl stats`, the names in Prometheus, and `docs/metrics.md`. A metric is added by a variant here, or in the
//! engine by one of [`DropReason`] or [`Event`].

use crate::metrics::targets::TargetStatus;
use ::control::{ServiceServer, ServiceState};
use pktio::{PortStatistics, RingStatistics};
use tcpstate::{Description, DropReason, Event, MetricKind, Population, Side, Timing, Unit, metrics};

metrics! {
    /// How many flows there are.
    pub enum FlowGauge: Gauge, Flows {
        /// Connections from the WAN that the box translates, from the SYN to the server on.
        Proxied = "proxied",
        /// Connections that pass through.
        Direct = "direct",
        /// Entries of the SYN cache.
        HalfOpen = "half-open",
    }
}

impl FlowGauge {
    /// Its value in the engine's account.
    pub fn of(self, population: &Population) -> u64 {
        match self {
            FlowGauge::Proxied => population.proxied,
            FlowGauge::Direct => population.passthrough,
            FlowGauge::HalfOpen => population.syn_cached,
        }
    }
}

metrics! {
    /// What a worker counts of its own work.
    pub enum WorkerMetric: Counter, Times {
        /// Frames held until their server answers.
        Held = "held" is Gauge in Frames as "frames held at the end",
        /// Frames dropped instead of held, because only the ports' reserve was left in the pool.
        TooFewToHold = "too-few-to-hold" in Frames as "lost, too few to hold" lost "too-few-to-hold",
        /// How often a worker served its ports.
        PollIterations = "poll-iterations" as "poll iterations",
        /// How often a worker slept because an iteration found nothing to do.
        Sleeps = "sleeps" as "sleeps between them",
        /// How often load made an adaptive worker poll instead of sleep.
        Wakes = "wakes" as "times load ended the sleep",
        /// Frames of the iterations that were timed.
        TimedFrames = "timed-frames" in Frames,
        /// Time from reception to transmission of these iterations, without the kernel's share.
        TimedNanoseconds = "timed-nanoseconds" in Nanoseconds,
        /// Frame buffers of the pool, in use or not.
        PoolFrames = "pool-frames" is Gauge in Frames,
        /// Frame buffers that nobody uses now.
        PoolIdle = "pool-idle" is Gauge in Frames,
        /// Flows that the table has room for, entries of the SYN cache included.
        FlowsMost = "flows-most" is Gauge in Flows,
        /// Flows for which the map has no room that the XDP program asks while a worker fails; it drops their segments then, and those of flows of the
        /// same place in the map.
        FlowsUnpublished = "flows-unpublished" is Gauge in Flows,
        /// Entries that the SYN cache has room for.
        SynCachedMost = "syn-cached-most" is Gauge in Flows,
        /// Flows taken over from a former process.
        FlowsAdopted = "flows-adopted" in Flows as "flows taken over",
        /// Records of a former process that were in use and are those of no flow: damaged, of another secret, or there twice.
        RecordsRefused = "records-refused" in Flows as "records of a former process refused",
    }
}

metrics! {
    /// What a worker times.
    pub enum WorkerTiming: Histogram, Nanoseconds {
        /// From the reception of frames to their transmission, without the kernel's share.
        Iteration = "iteration",
        /// For how long frames were held until their server answered.
        HoldTime = "hold-time",
    }
}

metrics! {
    /// Frames that the transmit ring of a port had no room for, by port.
    pub enum UnsentMetric: Counter, Frames {
        /// Frames for the LAN dropped because the transmit ring was full.
        Lan = "lan" as "lost, transmit ring full" lost "transmit-ring-full",
        /// Frames for the WAN dropped because the transmit ring was full.
        Wan = "wan" as "lost, transmit ring full" lost "transmit-ring-full",
    }
}

impl UnsentMetric {
    /// That of this port.
    pub const fn of(side: Side) -> Self {
        match side {
            Side::Lan => UnsentMetric::Lan,
            Side::Wan => UnsentMetric::Wan,
        }
    }
}

metrics! {
    /// What a worker exchanges with the other workers.
    pub enum HandoffMetric: Counter, Frames {
        /// Frames handed over to the worker that owns their flow.
        HandedOver = "handed-over" as "handed over",
        /// Frames taken over from the worker that received them.
        TakenOver = "taken-over" as "taken over",
        /// Frames dropped because the queue to their owner was full.
        QueueFull = "queue-full" as "lost, queue full" lost "queue-full" was "full",
        /// Frames dropped because their owner had no buffer for them.
        NoBuffer = "no-buffer-to-take-over" as "lost, no buffer to take over" lost "no-buffer-to-take-over" was "no-buffer" was "lost",
        /// Frames whose receive queue was compared with the software twin of the interfaces' hash.
        Sampled = "sampled" as "queues sampled",
        /// Sampled frames that had arrived on another queue than the hash names.
        WrongQueue = "wrong-queue" as "of these wrong" was "misfits",
        /// Updates on servers and proved sources sent to other workers, one for each receiver.
        UpdatesSent = "updates-sent" in Updates as "updates sent" was "told",
        /// Updates received from other workers.
        UpdatesReceived = "updates-received" in Updates as "updates received" was "heard",
        /// Updates dropped because the queue to a worker was full.
        UpdatesLost = "updates-lost" in Updates as "updates lost" was "unheard",
    }
}

metrics! {
    /// What a port counts.
    pub enum PortMetric: Counter, Frames {
        /// Frames received.
        Received = "received" as "received, frames",
        /// Bytes received.
        ReceivedBytes = "received-bytes" in Bytes as "received, bytes",
        /// Frames accepted for transmission.
        Sent = "sent" as "sent, frames",
        /// Bytes accepted for transmission.
        SentBytes = "sent-bytes" in Bytes as "sent, bytes",
        /// How often the transmit ring had no room for the whole batch.
        TransmitFull = "transmit-full" in Times as "transmit ring found full, times",
        /// Frames that cannot be sent: too long, or refused by the kernel.
        TransmitErrors = "transmit-refused" as "lost, transmit refused" lost "transmit-refused" was "transmit-errors",
        /// Frames dropped on reception because no buffer was free to replace theirs.
        NoBuffer = "no-buffer" as "lost, no buffer" lost "no-buffer",
        /// Frames dropped on reception because they were too long, or arrived cut off.
        Truncated = "too-long" as "lost, too long" lost "too-long" was "truncated",
        /// Frames dropped by the kernel because the receive ring was full.
        ReceiveFull = "receive-ring-full" as "lost, receive ring full" lost "receive-ring-full" was "receive-full",
        /// Frames dropped by the kernel on the way to the port for other reasons.
        KernelDrops = "kernel-drops" as "lost, kernel drops" lost "kernel-drops",
        /// How often the kernel found no buffer to receive into.
        FillEmpty = "fill-empty" in Times as "fill ring found empty, times",
        /// System calls that told the kernel to send, or that there are buffers to receive into.
        Kicks = "kicks" in Times as "kernel woken up, times",
        /// First-time SYNs of unproved sources dropped under overload.
        ShedFresh = "shed-fresh" lost "shed-fresh",
        /// Retransmitted SYNs of unproved sources dropped under overload.
        ShedRepeated = "shed-repeated" lost "shed-repeated",
        /// How often the XDP program found that the worker did not take its frames, and bridged or dropped them in its place.
        Failures = "failures" in Times as "worker failed, times",
        /// Frames that the XDP program bridged in the place of a worker that did not take them (`on_failure`).
        FailureBridged = "failure-bridged" as "bridged without the worker",
        /// Frames that it dropped then.
        FailureDropped = "failure-dropped" as "lost, failure dropped" lost "failure-dropped",
        /// Frames dropped because they came on a receive queue that no worker serves.
        Unserved = "unserved-queue" as "lost, unserved queue" lost "unserved-queue",
        /// Frames whose TCP, UDP or SCTP checksum the sender had left to a NIC that is not there, and that the port has completed.
        ChecksumsCompleted = "checksums-completed" as "checksums completed",
        /// Super-frames (TSO, GRO) that the port has cut into frames.
        SuperFrames = "super-frames" as "super-frames cut",
        /// Super-frames dropped because the port cannot cut them.
        Uncut = "uncut-super-frame" as "lost, uncut super-frame" lost "uncut-super-frame" was "uncut",
        /// Frames that the kernel forwarded to the other port by itself, for connections that were handed down to it. A super-frame counts once. They are
        /// not among the frames received and sent.
        Forwarded = "kernel-forwarded" as "forwarded by the kernel, frames",
        /// Bytes that the kernel forwarded to the other port by itself.
        ForwardedBytes = "kernel-forwarded-bytes" in Bytes as "forwarded by the kernel, bytes",
        /// Frames of connections handed down to the kernel that the XDP program left to the worker all the same, because their sender had left the
        /// checksum to a network card. Where many do, `fast_path = tc` is the better way.
        ForwardedPartial = "kernel-not-finished" as "left to the worker, partial sum",
    }
}

impl PortMetric {
    /// Its value in a port's statistics.
    pub fn of(self, statistics: &PortStatistics) -> u64 {
        // Every field is named, so that one that is new at the port cannot be left out here.
        let PortStatistics {
            received,
            received_bytes,
            sent,
            sent_bytes,
            transmit_full,
            transmit_errors,
            no_buffer,
            truncated,
            receive_full,
            fill_empty,
            kernel_drops,
            kicks,
            shed_fresh,
            shed_repeated,
            failures,
            failure_bridged,
            failure_dropped,
            unserved,
            checksums_completed,
            super_frames,
            uncut,
            forwarded,
            forwarded_bytes,
            forwarded_partial,
            // `RingMetric` has these.
            rings: _,
        } = *statistics;
        match self {
            PortMetric::Received => received,
            PortMetric::ReceivedBytes => received_bytes,
            PortMetric::Sent => sent,
            PortMetric::SentBytes => sent_bytes,
            PortMetric::TransmitFull => transmit_full,
            PortMetric::TransmitErrors => transmit_errors,
            PortMetric::NoBuffer => no_buffer,
            PortMetric::Truncated => truncated,
            PortMetric::ReceiveFull => receive_full,
            PortMetric::KernelDrops => kernel_drops,
            PortMetric::FillEmpty => fill_empty,
            PortMetric::Kicks => kicks,
            PortMetric::ShedFresh => shed_fresh,
            PortMetric::ShedRepeated => shed_repeated,
            PortMetric::Failures => failures,
            PortMetric::FailureBridged => failure_bridged,
            PortMetric::FailureDropped => failure_dropped,
            PortMetric::Unserved => unserved,
            PortMetric::ChecksumsCompleted => checksums_completed,
            PortMetric::SuperFrames => super_frames,
            PortMetric::Uncut => uncut,
            PortMetric::Forwarded => forwarded,
            PortMetric::ForwardedBytes => forwarded_bytes,
            PortMetric::ForwardedPartial => forwarded_partial,
        }
    }
}

metrics! {
    /// What the kernel counts of the rings of a worker's AF_XDP socket (`XDP_STATISTICS`), by its own names.
    pub enum RingMetric: Counter, Frames {
        /// Frames dropped on reception because they were longer than a buffer, or no buffer was there. Part of `kernel-drops`.
        RxDropped = "rx-dropped" as "rings, rx-dropped",
        /// Descriptors of the fill ring that the kernel refused.
        RxInvalidDescs = "rx-invalid-descs" in Times as "rings, rx-invalid-descs",
        /// Descriptors of the transmit ring that the kernel refused. Part of `transmit-refused`.
        TxInvalidDescs = "tx-invalid-descs" in Times as "rings, tx-invalid-descs",
        /// Frames dropped because the receive ring was full. Part of `receive-ring-full`.
        RxRingFull = "rx-ring-full" as "rings, rx-ring-full",
        /// How often the kernel found the fill ring empty when a frame came. Part of `fill-empty`.
        RxFillRingEmptyDescs = "rx-fill-ring-empty-descs" in Times as "rings, rx-fill-ring-empty-descs",
        /// How often the kernel looked for frames to send and found none: no loss, since it looks until the ring is empty.
        TxRingEmptyDescs = "tx-ring-empty-descs" in Times as "rings, tx-ring-empty-descs",
    }
}

impl RingMetric {
    /// Its value in the statistics of a socket's rings.
    pub fn of(self, statistics: &RingStatistics) -> u64 {
        let RingStatistics {
            rx_dropped,
            rx_invalid_descs,
            tx_invalid_descs,
            rx_ring_full,
            rx_fill_ring_empty_descs,
            tx_ring_empty_descs,
        } = *statistics;
        match self {
            RingMetric::RxDropped => rx_dropped,
            RingMetric::RxInvalidDescs => rx_invalid_descs,
            RingMetric::TxInvalidDescs => tx_invalid_descs,
            RingMetric::RxRingFull => rx_ring_full,
            RingMetric::RxFillRingEmptyDescs => rx_fill_ring_empty_descs,
            RingMetric::TxRingEmptyDescs => tx_ring_empty_descs,
        }
    }

    /// The ring it is counted at.
    const fn ring(self) -> &'static str {
        match self {
            RingMetric::RxDropped | RingMetric::RxRingFull => "receive",
            RingMetric::RxInvalidDescs | RingMetric::RxFillRingEmptyDescs => "fill",
            RingMetric::TxInvalidDescs | RingMetric::TxRingEmptyDescs => "transmit",
        }
    }
}

metrics! {
    /// What is noticed of a port's interface while the box runs.
    pub enum LinkMetric: Counter, Times {
        /// Whether there is somebody at the other end: 1 or 0.
        Carrier = "carrier" is Gauge,
        /// How often the link was lost. A port that the box has taken down itself has lost none.
        Lost = "lost" as "link lost, times",
        /// How often the port was taken down because the other one had lost its link (`link_loss = forward`).
        TakenDown = "taken-down" as "taken down for the other's loss, times",
        /// How often somebody has changed settings of the interface that the box works with.
        SettingsChanged = "settings-changed" as "settings changed by others, times",
    }
}

metrics! {
    /// What is noticed of the box as a whole.
    pub enum Notice: Gauge, Times {
        /// Whether LAN and WAN seem to be swapped, so that nothing is protected: connections are opened from the LAN and none from the WAN; 1 or 0.
        PortsSwapped = "ports-swapped",
        /// Attacks that last now.
        Attacks = "attacks",
        /// Whether an XDP program answers SYNs in front of tc, since they come in masses; 1 or 0.
        XdpInFront = "xdp-in-front",
    }
}

metrics! {
    /// The state that outlives the process ([docs/restart.md](restart.md)), and the clock.
    pub enum StateMetric: Gauge, Times {
        /// Milliseconds from the last use of the state by a former process to its takeover; 0 if none was taken over.
        Age = "age",
        /// Flows of a former process for which smaller tables had no room.
        NoRoom = "no-room" in Flows,
        /// Records of a former process that were refused when its flows moved to tables of another size or of other workers.
        Refused = "refused" in Flows,
        /// How often the clock of the machine was set, by a second or more.
        ClockSteps = "clock-steps" is Counter,
    }
}

metrics! {
    /// Events that were reported, by kind ([docs/events.md](events.md)).
    pub enum EventKind: Counter, Times {
        /// An attack has begun.
        AttackBegin = "attack-begin",
        /// An attack goes on.
        AttackUpdate = "attack-update",
        /// An attack has been at its strongest.
        AttackPeak = "attack-peak",
        /// An attack has ended.
        AttackEnd = "attack-end",
        /// The mode of a destination has changed.
        ModeSwitched = "mode-switched",
        /// A server of services accepts connections again.
        ServerUp = "server-up",
        /// A server of services does not accept connections any more.
        ServerDown = "server-down",
        /// A port has lost its link, or has it again.
        LinkChanged = "link-changed",
        /// Somebody has changed settings of an interface that the box had set.
        SettingsChanged = "settings-changed",
        /// A worker does not serve its ports any more.
        WorkerStalled = "worker-stalled",
        /// A worker that was stalled serves its ports again.
        WorkerResumed = "worker-resumed",
        /// A worker or a port has failed, and the box ends.
        BoxFailed = "box-failed",
    }
}

metrics! {
    /// What became of events on their way to the operator.
    pub enum DeliveryMetric: Counter, Times {
        /// Events dropped because too many were waiting to be reported.
        Dropped = "events-dropped",
        /// Events that could not be written to the file, or too many of which were waiting for it.
        FileLost = "file-lost",
        /// Events that the syslog could not be sent, or too many of which were waiting for it.
        SyslogLost = "syslog-lost",
        /// How often the command was run.
        CommandRun = "command-run",
        /// How often the command could not be started, or ended with a status other than 0.
        CommandFailed = "command-failed",
        /// How often the command was killed because it did not end in time.
        CommandKilled = "command-killed",
        /// Events for which the command was not run, because too many were waiting for it.
        CommandLost = "command-lost",
    }
}

metrics! {
    /// What is asked over the control socket, and of the configuration.
    pub enum ControlMetric: Counter, Times {
        /// Requests that have changed something; the log has each with its user.
        Changes = "changes" as "requests that changed something",
        /// Requests refused because they take another role, and clients refused because they have none.
        Forbidden = "forbidden" as "requests refused for their role",
        /// Configurations that were read again and are in force.
        Reloads = "reloads" as "configuration reloads",
        /// Configurations that were read again and refused, so that nothing changed.
        ReloadsRefused = "reloads-refused" as "configuration reloads refused",
    }
}

metrics! {
    /// What is counted and measured of each destination that has a mode of its own, by all workers together. For Prometheus and `synctl policy`.
    pub enum TargetMetric: Counter, Segments {
        /// Connections whose SYN has passed and that are not established.
        HalfOpen = "half-open" is Gauge in Connections,
        /// Cookies and entries of the SYN cache that may still be acknowledged.
        InFlight = "in-flight" is Gauge in Connections,
        /// SYNs from the WAN that passed.
        Passed = "passed",
        /// SYNs from the WAN answered with a SYN-ACK.
        Answered = "answered",
        /// SYNs from the WAN dropped because their source prefix had exceeded its rate.
        Limited = "limited",
        /// Clients that proved themselves by acknowledging one.
        Proved = "proved" in Connections,
        /// How often it has come to another mode.
        Switches = "switches" in Times,
    }
}

metrics! {
    /// What is counted of each service, by all workers together. For Prometheus and `synctl services`.
    pub enum ServiceMetric: Counter, Connections {
        /// Clients that have proved themselves.
        Opened = "opened",
        /// Clients whose server was chosen.
        Routed = "routed",
        /// Clients that were turned away.
        Refused = "refused",
        /// Clients that said nothing in time.
        TimedOut = "timed-out",
    }
}

impl ServiceMetric {
    /// Its value for a service.
    pub fn of(self, service: &ServiceState) -> u64 {
        match self {
            ServiceMetric::Opened => service.opened,
            ServiceMetric::Routed => service.routed,
            ServiceMetric::Refused => service.refused,
            ServiceMetric::TimedOut => service.timed_out,
        }
    }

    /// Its name in Prometheus.
    pub fn series(self) -> String {
        series("service", self.description())
    }
}

metrics! {
    /// What is known of each server of services, by all workers together. For Prometheus and `synctl services`.
    pub enum ServiceServerMetric: Gauge, Times {
        /// Whether it accepts connections, as far as it is asked: 1 or 0.
        Up = "up",
        /// Whether it gets no connections anew, by its weight or by command: 1 or 0.
        Drained = "drained",
        /// Connections that it has, of all services.
        Open = "open" in Connections,
        /// Connections that it was given, of all services.
        Given = "given" is Counter in Connections,
    }
}

impl ServiceServerMetric {
    /// Its value for a server.
    pub fn of(self, server: &ServiceServer) -> u64 {
        match self {
            ServiceServerMetric::Up => server.up.into(),
            ServiceServerMetric::Drained => server.drained.into(),
            ServiceServerMetric::Open => server.connections,
            ServiceServerMetric::Given => server.given,
        }
    }

    /// Its name in Prometheus.
    pub fn series(self) -> String {
        series("service_server", self.description())
    }
}

/// The name in Prometheus of what is counted of one of several.
fn series(of: &str, Description { label, kind, unit, .. }: Description) -> String {
    let unit = if label.ends_with(unit.label()) || unit == Unit::Times { "" } else { unit.label() };
    let words = [label.replace('-', "_").as_str(), unit].join("_");
    let total = if kind == MetricKind::Counter { "_total" } else { "" };
    format!("synproxy_{of}_{}{total}", words.trim_end_matches('_'))
}

impl TargetMetric {
    /// Its value for a destination.
    pub fn of(self, status: &TargetStatus) -> u64 {
        let TargetStatus { counts, in_flight, switches, .. } = status;
        match self {
            TargetMetric::HalfOpen => counts.half_open,
            TargetMetric::InFlight => *in_flight,
            TargetMetric::Passed => counts.passed,
            TargetMetric::Answered => counts.answered,
            TargetMetric::Limited => counts.limited,
            TargetMetric::Proved => counts.proved,
            TargetMetric::Switches => *switches,
        }
    }

    /// Its name in Prometheus.
    pub fn series(self) -> String {
        series("policy", self.description())
    }
}

metrics! {
    /// Commands of the control socket that workers execute: the most time one has taken, of the worker's own time.
    pub enum CommandKind: Gauge, Nanoseconds {
        /// Answering `status`.
        Status = "status",
        /// Exchanging the server table, for `backends`.
        Backends = "backends",
        /// Exchanging the policy.
        Policy = "policy",
        /// Changing how a worker waits and sheds, for `reload`.
        Options = "options",
        /// Exchanging the lists of clients, for `lists`.
        Lists = "lists",
        /// Starting or ending `drain`.
        Drain = "drain",
        /// Preparing a new secret, for `rotate-secrets`.
        RotateSecrets = "rotate-secrets",
        /// Following the clock of the machine, in whose epochs cookies are made.
        Clock = "clock",
        /// Listing one part of the connections, for `flows`.
        Flows = "flows",
        /// Copying the state of a connection, for `explain`.
        Explain = "explain",
        /// Copying the top talkers, for `top`.
        Top = "top",
        /// Reporting services and their servers, or draining a server, for `services`, for a scrape of the metrics and for events.
        Services = "services",
        /// Going on with a connection whose server's name has been looked up.
        Resolved = "resolved",
        /// Publishing the statistics, ten times a second: no command, and all that a scrape of the metrics costs a worker.
        Publish = "publish",
    }
}

/// Who writes a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// The engine (`tcpstate`) of a worker.
    Engine,
    /// A worker.
    Worker,
    /// A port (`pktio`), as it is read by its worker.
    Port,
    /// A thread that supervises the workers, or reports events.
    Supervisor,
}

impl Writer {
    /// The name in the documentation.
    pub const fn label(self) -> &'static str {
        match self {
            Writer::Engine => "engine",
            Writer::Worker => "worker",
            Writer::Port => "port",
            Writer::Supervisor => "supervisor",
        }
    }
}

/// How the values of several workers become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Total {
    /// The sum.
    Sum,
    /// The largest.
    Largest,
}

/// How the metrics of a family are named in Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Naming {
    /// All have this name, and one label with this key, whose value is the metric's own.
    Label(&'static str, &'static str),
    /// Each has a name of its own behind this prefix.
    Name(&'static str),
    /// Likewise, and a label that all of the family share.
    NameAndLabel(&'static str, (&'static str, &'static str)),
}

/// What the metrics of a family have in common.
#[derive(Clone, Copy, Debug)]
struct Traits {
    heading: &'static str,
    writer: Writer,
    total: Total,
    naming: Naming,
}

/// Declares the families of metrics, in the order of their cells.
macro_rules! families {
    ($($(#[doc = $doc:literal])+ $family:ident($metric:ty): $writer:ident, $total:ident, $naming:expr;)+) => {
        /// A value that is counted or measured.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Metric { $($(#[doc = $doc])+ $family($metric),)+ }

        /// A group of metrics that are reported together.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Family { $($(#[doc = $doc])+ $family,)+ }

        impl Family {
            /// Every one, in the order of their cells.
            pub const ALL: &'static [Family] = &[$(Family::$family,)+];

            /// How many metrics each has.
            const COUNTS: &'static [usize] = &[$(<$metric>::COUNT,)+];

            const fn traits(self) -> Traits {
                match self {
                    $(Family::$family => Traits {
                        heading: concat!($($doc,)+).trim_ascii_start(),
                        writer: Writer::$writer,
                        total: Total::$total,
                        naming: $naming,
                    },)+
                }
            }
        }

        impl Metric {
            /// The family it belongs to.
            pub const fn family(self) -> Family {
                match self { $(Metric::$family(_) => Family::$family,)+ }
            }

            /// The place of its cell, and of its row in [`TABLE`].
            pub const fn cell(self) -> usize {
                match self { $(Metric::$family(metric) => (const { Family::$family.first_cell() }) + metric as usize,)+ }
            }

            const fn description(self) -> Description {
                match self { $(Metric::$family(metric) => metric.description(),)+ }
            }
        }

        /// Everything there is to say of every metric, in the order of the cells.
        pub static TABLE: [Descriptor; CELLS] = {
            let mut table = [Descriptor::of(Metric::Drop(DropReason::Malformed)); CELLS];
            $(
                let mut at = 0;
                while at < <$metric>::COUNT {
                    let descriptor = Descriptor::of(Metric::$family(<$metric>::ALL[at]));
                    table[descriptor.metric.cell()] = descriptor;
                    at += 1;
                }
            )+
            table
        };
    };
}

families! {
    /// Frames the engine dropped, by reason.
    Drop(DropReason): Engine, Sum, Naming::Label("dropped", "reason");
    /// What else the engine did, by event.
    Event(Event): Engine, Sum, Naming::Label("events", "event");
    /// The flows there are, by kind.
    Flows(FlowGauge): Engine, Sum, Naming::Label("flows", "kind");
    /// A worker's own work.
    Worker(WorkerMetric): Worker, Sum, Naming::Name("worker");
    /// Frames that found the transmit ring of a port full.
    Unsent(UnsentMetric): Worker, Sum, Naming::Label("unsent", "port");
    /// What passes between workers.
    Handoff(HandoffMetric): Worker, Sum, Naming::Name("handoff");
    /// The port to the servers.
    Lan(PortMetric): Port, Sum, Naming::NameAndLabel("port", ("port", "lan"));
    /// The port to everybody else.
    Wan(PortMetric): Port, Sum, Naming::NameAndLabel("port", ("port", "wan"));
    /// The rings of the AF_XDP sockets to the servers, as the kernel counts them.
    LanRing(RingMetric): Port, Sum, Naming::NameAndLabel("xdp", ("port", "lan"));
    /// The rings of the AF_XDP sockets to everybody else, as the kernel counts them.
    WanRing(RingMetric): Port, Sum, Naming::NameAndLabel("xdp", ("port", "wan"));
    /// The link and the settings of the interface to the servers.
    LanLink(LinkMetric): Supervisor, Sum, Naming::NameAndLabel("link", ("port", "lan"));
    /// The link and the settings of the interface to everybody else.
    WanLink(LinkMetric): Supervisor, Sum, Naming::NameAndLabel("link", ("port", "wan"));
    /// What was noticed of the box as a whole.
    Notice(Notice): Supervisor, Sum, Naming::Name("notice");
    /// The state that outlives the process, and the clock.
    State(StateMetric): Supervisor, Sum, Naming::Name("state");
    /// The control socket and the configuration.
    Control(ControlMetric): Supervisor, Sum, Naming::Name("control");
    /// Events that were reported, by kind.
    Reported(EventKind): Supervisor, Sum, Naming::Label("reported_events", "event");
    /// What became of events on their way to the operator.
    Delivery(DeliveryMetric): Supervisor, Sum, Naming::Name("delivery");
    /// The longest that a command, or publishing the statistics, kept a worker from its frames.
    Command(CommandKind): Worker, Largest, Naming::Label("longest_command", "command");
}

/// How many cells a snapshot has: one for each metric.
pub const CELLS: usize = Family::first_cell_of(Family::ALL.len());

impl Family {
    const fn first_cell(self) -> usize {
        Self::first_cell_of(self as usize)
    }

    /// The sum of the families before this one.
    const fn first_cell_of(family: usize) -> usize {
        let (mut at, mut sum) = (0, 0);
        while at < family {
            sum += Self::COUNTS[at];
            at += 1;
        }
        sum
    }

    /// What it is, as one sentence.
    pub const fn heading(self) -> &'static str {
        self.traits().heading
    }

    /// Whether one of its metrics had this name, which stands beside the present one for programs that know no other.
    pub fn is_former(self, name: &str) -> bool {
        self.descriptors().iter().any(|row| row.aliases.contains(&name))
    }

    /// The rows of its metrics in [`TABLE`].
    pub fn descriptors(self) -> &'static [Descriptor] {
        &TABLE[self.first_cell()..][..Self::COUNTS[self as usize]]
    }
}

impl Metric {
    /// One of a port's.
    pub const fn port(side: Side, metric: PortMetric) -> Self {
        match side {
            Side::Lan => Metric::Lan(metric),
            Side::Wan => Metric::Wan(metric),
        }
    }

    /// One of the rings of a port's sockets.
    pub const fn ring(side: Side, metric: RingMetric) -> Self {
        match side {
            Side::Lan => Metric::LanRing(metric),
            Side::Wan => Metric::WanRing(metric),
        }
    }

    /// One of the interface of a port.
    pub const fn link(side: Side, metric: LinkMetric) -> Self {
        match side {
            Side::Lan => Metric::LanLink(metric),
            Side::Wan => Metric::WanLink(metric),
        }
    }

    /// The port at whose rings it is counted; `None` for any other metric. Prometheus gets the name of its interface as a label.
    pub const fn ring_side(self) -> Option<Side> {
        match self {
            Metric::LanRing(_) => Some(Side::Lan),
            Metric::WanRing(_) => Some(Side::Wan),
            _ => None,
        }
    }

    /// Its row in [`TABLE`].
    pub fn descriptor(self) -> &'static Descriptor {
        &TABLE[self.cell()]
    }
}

/// Something that is timed, each time it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timed {
    /// By the engine.
    Engine(Timing),
    /// By the worker.
    Worker(WorkerTiming),
}

/// How many there are.
pub const TIMED: usize = Timing::COUNT + WorkerTiming::COUNT;

impl Timed {
    /// Every one, in the order of their places.
    pub fn all() -> impl Iterator<Item = Timed> {
        let engine = Timing::ALL.iter().map(|&timing| Timed::Engine(timing));
        engine.chain(WorkerTiming::ALL.iter().map(|&timing| Timed::Worker(timing)))
    }

    /// Its place among them.
    pub const fn place(self) -> usize {
        match self {
            Timed::Engine(timing) => timing as usize,
            Timed::Worker(timing) => Timing::COUNT + timing as usize,
        }
    }

    /// Everything there is to say of it.
    pub const fn description(self) -> Description {
        match self {
            Timed::Engine(timing) => timing.description(),
            Timed::Worker(timing) => timing.description(),
        }
    }

    /// Who writes it.
    pub const fn writer(self) -> Writer {
        match self {
            Timed::Engine(_) => Writer::Engine,
            Timed::Worker(_) => Writer::Worker,
        }
    }

    /// Its name in Prometheus.
    pub fn series(self) -> String {
        format!("synproxy_{}_seconds", self.description().label.replace('-', "_"))
    }
}

impl From<WorkerTiming> for Timed {
    fn from(timing: WorkerTiming) -> Self {
        Timed::Worker(timing)
    }
}

/// Lets a metric stand for itself where its family is plain.
macro_rules! plain {
    ($($family:ident($metric:ty)),+) => {
        $(impl From<$metric> for Metric {
            fn from(metric: $metric) -> Self {
                Metric::$family(metric)
            }
        })+
    };
}

plain! {
    Drop(DropReason), Event(Event), Flows(FlowGauge), Worker(WorkerMetric), Unsent(UnsentMetric), Handoff(HandoffMetric),
    Command(CommandKind), Notice(Notice), State(StateMetric), Control(ControlMetric), Reported(EventKind),
    Delivery(DeliveryMetric)
}

/// Everything there is to say of one metric.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// Which one.
    pub metric: Metric,
    /// Its name in statistics.
    pub name: &'static str,
    /// Former names that the control socket still gives beside the present one.
    pub aliases: &'static [&'static str],
    /// Its row in the table at exit.
    pub title: &'static str,
    /// How its value behaves.
    pub kind: MetricKind,
    /// What it counts.
    pub unit: Unit,
    /// What it means, as one sentence.
    pub meaning: &'static str,
    /// The name of the loss, where it counts frames that were lost for want of room.
    pub loss: Option<&'static str>,
    /// Who writes it.
    pub writer: Writer,
    /// How the values of several workers become one.
    pub total: Total,
}

/// The name of a metric in Prometheus.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// The name.
    pub name: String,
    /// The labels: keys and values.
    pub labels: Vec<(&'static str, &'static str)>,
    /// What the value is multiplied with, since Prometheus wants seconds.
    pub scale: f64,
}

impl std::fmt::Display for Series {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)?;
        for (n, (key, value)) in self.labels.iter().enumerate() {
            write!(f, "{}{key}=\"{value}\"", if n == 0 { "{" } else { "," })?;
        }
        if self.labels.is_empty() { Ok(()) } else { f.write_str("}") }
    }
}

impl Descriptor {
    const fn of(metric: Metric) -> Self {
        let Description { label, title, kind, unit, meaning, loss, aliases } = metric.description();
        let Traits { writer, total, .. } = metric.family().traits();
        Self { metric, name: label, aliases, title, kind, unit, meaning, loss, writer, total }
    }

    /// Its name, and those it had.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.name).chain(self.aliases.iter().copied())
    }

    /// Its name in Prometheus, as the conventions there want it: base units, and `_total` behind a counter.
    pub fn series(&self) -> Series {
        let (unit, scale) = match self.unit {
            Unit::Nanoseconds => ("seconds", 1e-9),
            Unit::Times => ("", 1.0),
            unit => (unit.label(), 1.0),
        };
        let own = self.name.strip_suffix("-nanoseconds").unwrap_or(self.name).replace('-', "_");
        let (stem, mut labels) = match self.metric.family().traits().naming {
            Naming::Label(stem, key) => (stem.to_owned(), vec![(key, self.name)]),
            Naming::Name(prefix) => (format!("{prefix}_{own}"), Vec::new()),
            Naming::NameAndLabel(prefix, label) => (format!("{prefix}_{own}"), vec![label]),
        };
        if let Metric::LanRing(metric) | Metric::WanRing(metric) = self.metric {
            labels.push(("ring", metric.ring()));
        }
        let mut name = format!("synproxy_{stem}");
        // Metrics that share a name have several units, unless the name says theirs.
        let shared = matches!(self.metric, Metric::Event(_));
        if !unit.is_empty() && !shared && !name.contains(unit) {
            name = format!("{name}_{unit}");
        }
        match self.kind {
            MetricKind::Counter => name.push_str("_total"),
            MetricKind::Gauge => {}
            MetricKind::Histogram => name.push_str("_bucket"),
        }
        Series { name, labels, scale }
    }
}

/// Losses that had another name, which the control socket still gives beside the present one: the former name, and the present one.
pub const FORMER_LOSSES: [(&str, &str); 2] = [("lane-full", "queue-full"), ("kernel", "kernel-drops")];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_metric_has_a_cell_of_its_own_and_the_row_of_that_cell() {
        for (cell, descriptor) in TABLE.iter().enumerate() {
            assert_eq!(descriptor.metric.cell(), cell, "{descriptor:?}");
        }
        let rows: usize = Family::ALL.iter().map(|family| family.descriptors().len()).sum();
        assert_eq!(rows, CELLS);
        for &family in Family::ALL {
            assert!(family.descriptors().iter().all(|descriptor| descriptor.metric.family() == family));
        }
    }

    #[test]
    fn names_are_plain_and_told_apart() {
        let plain = |name: &str| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        for &family in Family::ALL {
            let rows = family.descriptors();
            let all: Vec<&str> = rows.iter().flat_map(|row| row.names()).collect();
            let names: BTreeSet<&str> = all.iter().copied().collect();
            assert_eq!(names.len(), all.len(), "{family:?}");
            assert!(names.into_iter().all(plain), "{family:?}");
        }
        for row in &TABLE {
            assert!(row.meaning.ends_with('.') && !row.meaning.starts_with(' '), "{row:?}");
        }
    }

    #[test]
    fn a_loss_has_one_name_wherever_it_is_shown() {
        for row in &TABLE {
            let Some(loss) = row.loss else { continue };
            let words = loss.replace("super-frame", "super+frame").replace('-', " ").replace('+', "-");
            assert!(row.title == format!("lost, {words}") || row.title == loss, "the table at exit: {row:?}");
            assert!(row.name == loss || matches!(row.metric, Metric::Unsent(_)), "{row:?}");
        }
        let present = |name: &str| TABLE.iter().any(|row| row.loss == Some(name));
        assert!(FORMER_LOSSES.iter().all(|(former, name)| present(name) && !present(former)));
    }

    #[test]
    fn series_follow_the_conventions_of_prometheus() {
        let series: BTreeSet<String> = TABLE.iter().map(|row| row.series().to_string()).collect();
        assert_eq!(series.len(), CELLS, "each is another one");
        for (metric, expected) in [
            (DropReason::BadCookie.into(), "synproxy_dropped_frames_total{reason=\"bad-cookie\"}"),
            (Event::SynAnswered.into(), "synproxy_events_total{event=\"syn-answered\"}"),
            (FlowGauge::HalfOpen.into(), "synproxy_flows{kind=\"half-open\"}"),
            (WorkerMetric::Held.into(), "synproxy_worker_held_frames"),
            (WorkerMetric::TimedNanoseconds.into(), "synproxy_worker_timed_seconds_total"),
            (UnsentMetric::Wan.into(), "synproxy_unsent_frames_total{port=\"wan\"}"),
            (HandoffMetric::UpdatesLost.into(), "synproxy_handoff_updates_lost_total"),
            (Metric::Lan(PortMetric::ReceivedBytes), "synproxy_port_received_bytes_total{port=\"lan\"}"),
            (Metric::Wan(PortMetric::Kicks), "synproxy_port_kicks_total{port=\"wan\"}"),
            (
                Metric::LanRing(RingMetric::RxDropped),
                "synproxy_xdp_rx_dropped_frames_total{port=\"lan\",ring=\"receive\"}",
            ),
            (
                Metric::WanRing(RingMetric::RxFillRingEmptyDescs),
                "synproxy_xdp_rx_fill_ring_empty_descs_total{port=\"wan\",ring=\"fill\"}",
            ),
            (Metric::LanLink(LinkMetric::Lost), "synproxy_link_lost_total{port=\"lan\"}"),
            (Notice::PortsSwapped.into(), "synproxy_notice_ports_swapped"),
            (CommandKind::Flows.into(), "synproxy_longest_command_seconds{command=\"flows\"}"),
        ] {
            let metric: Metric = metric;
            assert_eq!(metric.descriptor().series().to_string(), expected);
        }
        assert_eq!(Metric::from(CommandKind::Top).descriptor().series().scale, 1e-9);
    }
}
