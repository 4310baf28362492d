//! nmap sees the same ports with the proxy and without it.

use std::time::Duration;
use std::{net::IpAddr, thread};

use harness::{note, test};
use unit::netns::{self, CACHE_OFF, CACHE_ON, Rig};

use crate::rig::{Listening, bar, needs};

/// What nmap says of the five ports: `8001/open 8002/closed ...`.
fn scan(rig: &Rig, kind: &str, ip: IpAddr) -> String {
    let six = if ip.is_ipv6() { "-6" } else { "" };
    // Without a host that answers elsewhere a scan of few ports has no timing to go by: that of a LAN is short.
    let said = rig.client.sh(&format!(
        "nmap -n -Pn {kind} {six} -p 8001-8005 --max-retries 1 --initial-rtt-timeout 300ms --max-rtt-timeout 300ms -oG - {ip}"
    ));
    let ports = said.split("Ports: ").nth(1).unwrap_or_else(|| panic!("nmap said: {said}"));
    let states = ports.lines().next().unwrap_or_default().split(", ").map(|port| {
        let mut fields = port.split('/');
        format!("{}/{}", fields.next().unwrap_or_default(), fields.next().unwrap_or_default())
    });
    states.collect::<Vec<_>>().join(" ")
}

/// So long after a scan everything is known that the box learns from it.
const SETTLES: Duration = Duration::from_millis(2500);

fn scans(kind: &str, middle: Option<&str>, ip: IpAddr) -> Vec<String> {
    let rig = Rig::new();
    let _proxy = netns::stand(&rig, middle);
    let _open = Listening::start(&rig.server, ip, 8001);
    bar(&rig.server);
    let times = if middle.is_some() { 4 } else { 1 };
    let seen: Vec<_> = (0..times)
        .map(|_| {
            let seen = scan(&rig, kind, ip);
            thread::sleep(SETTLES);
            seen
        })
        .collect();
    note!("{kind} {ip} {middle:?}: {seen:?}");
    seen
}

fn sees_the_same(kind: &str) {
    for ip in [netns::SERVER_V4, netns::SERVER_V6] {
        let plain = scans(kind, None, ip);
        for cache in [CACHE_ON, CACHE_OFF] {
            let seen = scans(kind, Some(cache), ip);
            for (n, seen) in seen.iter().enumerate().skip(1) {
                assert_eq!(*seen, plain[0], "scan {n}, counted from zero, of {ip} with {cache}");
            }
        }
    }
}

#[test]
fn a_connect_scan_prints_the_same_from_the_second_on() {
    needs(&["nmap", "nft"]);
    sees_the_same("-sT");
}

#[test]
fn a_syn_scan_prints_the_same_from_the_second_on() {
    needs(&["nmap", "nft"]);
    sees_the_same("-sS");
}
