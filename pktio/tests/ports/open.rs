//! What opening ports says where something is missing.

use harness::test;
use pktio::{Options, open};

#[test]
fn without_the_netmap_module_one_line_says_so() {
    if std::path::Path::new("/dev/netmap").exists() {
        harness::ignore("the netmap module is loaded here");
    }
    for (lan, wan) in [("vale0:1", "vale1:1"), ("netmap:pipe{1", "netmap:pipe{2")] {
        let error = open(lan, wan, &Options::default()).unwrap_err().to_string();
        assert!(error.contains("the netmap module is not loaded") && error.contains("modprobe netmap"), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}
