//! Compiles the XDP program with clang, so that it can be embedded into the library.

use std::env;
use std::path::PathBuf;
use std::process::Command;

const SOURCE: &str = "bpf/redirect.c";

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-changed=bpf/shed.h");
    println!("cargo::rerun-if-env-changed=CLANG");
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let object = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("redirect.o");
    // -g for the BTF that describes the maps; v3 of the instruction set is there since Linux 5.1.
    let status = Command::new(&clang)
        .args([
            "-target",
            "bpf",
            "-mcpu=v3",
            "-O2",
            "-g",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-nostdinc",
            "-c",
            SOURCE,
            "-o",
        ])
        .arg(&object)
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{clang} could not compile {SOURCE}: {status}"),
        Err(error) => panic!("cannot run {clang}: {error}; install clang (Debian: apt-get install clang) or set CLANG"),
    }
}
