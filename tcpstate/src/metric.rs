//! How counted things are described: [`metrics!`](crate::metrics) declares an enumeration of them, each variant with all that
//! a log line, a table, a control protocol, a monitoring system and the documentation have to say of it.

/// How the value of a metric behaves over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MetricKind {
    /// It only grows while the process runs.
    Counter,
    /// It is a momentary value, which rises and falls.
    Gauge,
    /// It counts observations up to a bound: the variants of the enumeration are the buckets, their labels the bounds.
    Histogram,
}

impl MetricKind {
    /// The name in the documentation, and the type in Prometheus' text format.
    pub const fn label(self) -> &'static str {
        match self {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        }
    }
}

/// What a metric counts or measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Frames, whatever is in them.
    Frames,
    /// Bytes of frames, without preamble and frame check sequence.
    Bytes,
    /// TCP segments.
    Segments,
    /// TCP connections, or attempts to open one.
    Connections,
    /// Entries of the flow table.
    Flows,
    /// ICMP messages.
    Messages,
    /// Updates that workers send each other.
    Updates,
    /// Occurrences of something that has no size.
    Times,
    /// Nanoseconds.
    Nanoseconds,
}

impl Unit {
    /// The name in the documentation.
    pub const fn label(self) -> &'static str {
        match self {
            Unit::Frames => "frames",
            Unit::Bytes => "bytes",
            Unit::Segments => "segments",
            Unit::Connections => "connections",
            Unit::Flows => "flows",
            Unit::Messages => "messages",
            Unit::Updates => "updates",
            Unit::Times => "times",
            Unit::Nanoseconds => "nanoseconds",
        }
    }
}

/// Everything there is to say of one metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its name in statistics and metrics.
    pub label: &'static str,
    /// Its name in tables for people.
    pub title: &'static str,
    /// How its value behaves.
    pub kind: MetricKind,
    /// What it counts.
    pub unit: Unit,
    /// What it means, as one sentence.
    pub meaning: &'static str,
    /// The name of the loss, where it counts frames that were lost.
    pub loss: Option<&'static str>,
    /// Former labels that statistics still give beside the present one.
    pub aliases: &'static [&'static str],
}

/// Declares an enumeration of metrics. The head names their kind and unit, which a variant may replace; the documentation of a
/// variant is its meaning:
///
/// ```
/// tcpstate::metrics! {
///     /// What a queue counts.
///     pub enum QueueMetric: Counter, Frames {
///         /// Frames that found the queue full.
///         Full = "queue-full" lost "queue-full" was "full",
///         /// Frames in the queue now.
///         Length = "length" is Gauge,
///         /// How often the queue was read.
///         Reads = "reads" in Times was "takes",
///     }
/// }
/// let full = QueueMetric::Full.description();
/// assert_eq!((full.label, full.title, full.loss, full.aliases), ("queue-full", "queue-full", Some("queue-full"), &["full"][..]));
/// assert_eq!(QueueMetric::Length.description().kind, tcpstate::MetricKind::Gauge);
/// assert_eq!(QueueMetric::Reads.meaning(), "How often the queue was read.");
/// ```
///
/// `is` gives the kind, `in` the unit, `as` the title in tables, `lost` the name of the loss, `was` a former label, of which there may be several;
/// in that order.
#[macro_export]
macro_rules! metrics {
    (
        $(#[$meta:meta])*
        pub enum $name:ident: $kind:ident, $unit:ident {
            $(
                $(#[doc = $doc:literal])+
                $variant:ident = $label:literal
                $(is $own_kind:ident)? $(in $own_unit:ident)? $(as $title:literal)? $(lost $loss:literal)? $(was $alias:literal)*,
            )+
        }
    ) => {
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
                self.description().label
            }

            /// What it means, as one sentence.
            pub const fn meaning(self) -> &'static str {
                self.description().meaning
            }

            /// Everything there is to say of it.
            pub const fn description(self) -> $crate::Description {
                match self {
                    $($name::$variant => $crate::Description {
                        label: $label,
                        title: $crate::metrics!(@first $($title,)? $label),
                        kind: $crate::metrics!(@kind $kind $($own_kind)?),
                        unit: $crate::metrics!(@unit $unit $($own_unit)?),
                        meaning: concat!($($doc,)+).trim_ascii_start(),
                        loss: $crate::metrics!(@option $($loss)?),
                        aliases: &[$($alias),*],
                    },)+
                }
            }
        }
    };
    (@first $first:literal $(, $rest:literal)?) => { $first };
    (@kind $default:ident) => { $crate::MetricKind::$default };
    (@kind $default:ident $own:ident) => { $crate::MetricKind::$own };
    (@unit $default:ident) => { $crate::Unit::$default };
    (@unit $default:ident $own:ident) => { $crate::Unit::$own };
    (@option) => { None };
    (@option $value:literal) => { Some($value) };
}
