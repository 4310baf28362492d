//! `docs/metrics.md` is made from the table of descriptors, and equal to it. `METRICS=accept cargo test -p synproxy --test metrics_document`
//! writes it anew.

use std::fmt::Write;
use std::path::Path;
use synproxy::metrics::descriptors::{
    Descriptor, Family, ServiceMetric, ServiceServerMetric, TABLE, TargetMetric, Timed, Total,
};
use synproxy::metrics::prometheus::{POLICY_DROPS, POLICY_EVENTS};

/// How the control socket gives the metrics of a family.
fn in_stats(family: Family) -> &'static str {
    match family {
        Family::Drop => "`drops`",
        Family::Event => "`events`",
        Family::Flows => "`flows`",
        Family::Worker => {
            "`held`, `wakes`, `timed-frames` and `timed-nanoseconds`; the others are in the table at exit"
        }
        Family::Unsent => "the sum of both, as a loss",
        Family::Handoff => "`crossed`, with the former names beside the present ones",
        Family::Lan => "`lan`, with the former names beside the present ones",
        Family::Wan => "`wan`, with the former names beside the present ones",
        Family::LanRing => "`lan-rings`",
        Family::WanRing => "`wan-rings`",
        Family::LanLink => "`lan-link`, in the total",
        Family::WanLink => "`wan-link`, in the total",
        Family::Notice => "`notices`, in the total",
        Family::State => "`state`, in the total",
        Family::Control => "`control`, in the total",
        Family::Reported => "`reported-events`, in the total",
        Family::Delivery => "`delivery`, in the total",
        Family::Command => "`orders`",
    }
}

fn row(descriptor: &Descriptor) -> String {
    let Descriptor { name, aliases, kind, unit, meaning, loss, .. } = *descriptor;
    let alias: String = aliases.iter().map(|alias| format!(", formerly `{alias}`")).collect();
    let loss = loss.map(|loss| format!(" Loss: `{loss}`.")).unwrap_or_default();
    let series = descriptor.series().to_string().replace('|', "\\|");
    format!("| `{name}`{alias} | {} | {} | {meaning}{loss} | `{series}` |\n", kind.label(), unit.label())
}

fn document() -> String {
    let mut text = "\
# Metrics

Everything that the appliance counts and measures. This page is made from the table of descriptors
(`synproxy/src/metrics/descriptors.rs`, with the drop reasons and events of `tcpstate/src/verdict.rs`) by
`METRICS=accept cargo test -p synproxy --test metrics_document`; the same test fails when the page and the table differ.

`synctl stats --json` gives every value for each worker and in total. The total of a metric is the sum over the workers, unless
its section says otherwise. A counter only grows while the process runs; a gauge is a momentary value. The last column is the
name in Prometheus, where nanoseconds are seconds and each value has a label `worker` besides, and a value of rings a label `interface`
([the endpoint](operations.md#metrics)). A worker has one AF_XDP socket at each port, so `worker`, `interface` and `ring` name one ring.

Frames that were lost for want of room are also summed up over ports and workers, in `losses`, in the line that is logged every two seconds
while frames arrive, and in `synctl top`: everywhere by the same name, which the table at exit writes with blanks behind `lost,`.
"
    .to_owned();
    for &family in Family::ALL {
        let rows = family.descriptors();
        let _ = writeln!(text, "\n## {}\n", family.heading().trim_end_matches('.'));
        let largest = if rows[0].total == Total::Largest { " The total is the largest value of a worker." } else { "" };
        let _ = writeln!(
            text,
            "Written by: {}. In `synctl stats --json`: {}.{largest}\n",
            rows[0].writer.label(),
            in_stats(family)
        );
        text.push_str("| name | kind | unit | meaning | Prometheus |\n|---|---|---|---|---|\n");
        rows.iter().for_each(|descriptor| text.push_str(&row(descriptor)));
    }
    text.push_str(
        "\n## Destinations\n\nOf each destination that has a [mode](modes.md) of its own, by the label `policy`, which is its network with port and VLAN, \
         or `everybody`. Written by: the thread that decides the modes, from what all workers have counted. In `synctl policy --json`: one of \
         each. `synproxy_policy_mode{policy,mode}` is 1 for the mode that it is in, and 0 for the others.\n\n\
         | name | kind | unit | meaning | Prometheus |\n|---|---|---|---|---|\n",
    );
    for metric in TargetMetric::ALL {
        let (description, series) = (metric.description(), metric.series());
        let (label, kind, unit) = (description.label, description.kind.label(), description.unit.label());
        let _ = writeln!(text, "| `{label}` | {kind} | {unit} | {} | `{series}` |", description.meaning);
    }
    let _ = writeln!(
        text,
        "| `drops` | counter | segments | Segments that were dropped, and ICMP errors that quote one, by [reason](drops.md). What the kernel's program \
         drops before a worker sees it is not among them, and, where there are several destinations, neither are frames that are no segments. | `{POLICY_DROPS}{{policy,reason}}` |"
    );
    let _ = writeln!(
        text,
        "| `events` | counter | by event | Each [event](#what-else-the-engine-did-by-event), as far as it is one of a connection or a segment of the destination. Where \
         there are several destinations, frames that are not TCP (later fragments too), questions of health checks, held frames that nobody waits for, and what the kernel's program drops are of none. | `{POLICY_EVENTS}{{policy,event}}` |"
    );
    text.push_str(
        "\n## Services\n\nOf each [service](services.md), by the label `service`, which is its address and port, and of each of its servers, by the label \
         `server` besides. Written by: the workers, which are asked at each scrape. In `synctl services --json`.\n\n\
         | name | kind | unit | meaning | Prometheus |\n|---|---|---|---|---|\n",
    );
    let of_services = ServiceMetric::ALL.iter().map(|metric| (metric.description(), metric.series()));
    let of_servers = ServiceServerMetric::ALL.iter().map(|metric| (metric.description(), metric.series()));
    for (description, series) in of_services.chain(of_servers) {
        let (label, kind, unit) = (description.label, description.kind.label(), description.unit.label());
        let _ = writeln!(text, "| `{label}` | {kind} | {unit} | {} | `{series}` |", description.meaning);
    }
    text.push_str(
        "\n## Times\n\nHistograms, for Prometheus alone. The bounds of the buckets are powers of two from a microsecond to 67 seconds.\n\n\
         | name | written by | meaning | Prometheus |\n|---|---|---|---|\n",
    );
    for timed in Timed::all() {
        let (description, writer) = (timed.description(), timed.writer().label());
        let _ =
            writeln!(text, "| `{}` | {writer} | {} | `{}` |", description.label, description.meaning, timed.series());
    }
    text
}

#[test]
fn the_page_on_metrics_is_made_from_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let document = document();
    assert!(TABLE.iter().all(|descriptor| document.contains(&format!("| `{}`", descriptor.name))));
    if std::env::var_os("METRICS").is_some_and(|value| value == "accept") {
        std::fs::write(&path, &document).expect("the page can be written");
    }
    let page = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(page == document, "docs/metrics.md differs from the table; METRICS=accept writes it anew");
}
