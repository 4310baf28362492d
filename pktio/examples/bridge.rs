//! Bridges two interfaces for a while and prints the rate: `bridge LAN WAN SECONDS [auto|zerocopy|driver|generic] [WORKERS]`.

use std::error::Error;
use std::time::{Duration, Instant};

use pktio::{Batch, Mode, Options, Pair, PortStatistics, open, wait};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [lan, wan, seconds, rest @ ..] = arguments.as_slice() else {
        return Err("usage: bridge LAN WAN SECONDS [auto|zerocopy|driver|generic] [WORKERS]".into());
    };
    let time = Duration::from_secs_f64(seconds.parse()?);
    let mode = match rest.first().map_or("auto", String::as_str) {
        "auto" => Mode::Auto,
        "zerocopy" => Mode::ZeroCopy,
        "driver" => Mode::Driver,
        "generic" => Mode::Generic,
        other => return Err(format!("{other:?} is no mode").into()),
    };
    let workers = rest.get(1).map_or(Ok(1), |n| n.parse())?;
    let options = Options { mode, workers, ..Options::default() };
    let opened = open(lan, wan, &options)?;
    for note in &opened.notes {
        println!("{note}");
    }
    println!("ready");
    let end = Instant::now() + time;
    let workers: Vec<_> =
        opened.pairs.into_iter().map(|pair| std::thread::spawn(move || bridge(pair, options.batch, end))).collect();
    for worker in workers {
        worker.join().map_err(|_| "a worker panicked")?;
    }
    println!("unclaimed {}", opened.guard.unclaimed());
    Ok(())
}

/// Moves frames between the ports of `pair` until `end`.
fn bridge(mut pair: Pair, max: usize, end: Instant) {
    let mut batch = Batch::new();
    while Instant::now() < end {
        let mut moved = pair.lan.receive(&mut batch, max, &mut pair.pool);
        pair.wan.transmit(&mut batch, &mut pair.pool);
        batch.drain(..).for_each(|frame| pair.pool.put(frame));
        moved += pair.wan.receive(&mut batch, max, &mut pair.pool);
        pair.lan.transmit(&mut batch, &mut pair.pool);
        batch.drain(..).for_each(|frame| pair.pool.put(frame));
        pair.lan.flush(&mut pair.pool);
        pair.wan.flush(&mut pair.pool);
        if moved == 0 {
            // An interface that goes away is not this example's business.
            let _ = wait([&*pair.lan, &*pair.wan], Some(Duration::from_millis(100)));
        }
    }
    for (name, port) in [("lan", &pair.lan), ("wan", &pair.wan)] {
        let PortStatistics { received, sent, received_bytes, .. } = port.statistics();
        println!("{name}: received {received} ({received_bytes} bytes), sent {sent}; {:?}", port.statistics());
    }
    let (idle, lent, total) = (pair.pool.idle(), pair.pool.lent(), pair.pool.total());
    println!("frames: {idle} idle + {lent} in rings = {total}");
    assert_eq!(idle + lent, total, "a frame is lost");
}
