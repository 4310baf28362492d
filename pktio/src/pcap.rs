//! The pcap part; see the crate's documentation.
