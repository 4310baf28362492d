// Compiles an XDP program with clang, so that it can be embedded into a library. Included by the build scripts that need it.

/// Compiles `source` into `object` in the directory for generated files; `headers` are the files it includes.
fn compile(source: &str, headers: &[&str], object: &str) {
    use std::{env, path::PathBuf, process::Command};

    for file in headers.iter().chain([&source]) {
        println!("cargo::rerun-if-changed={file}");
    }
    println!("cargo::rerun-if-env-changed=CLANG");
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let object = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join(object);
    // -g for the BTF that describes the maps; v3 of the instruction set is there since Linux 5.1.
    let arguments = "-target bpf -mcpu=v3 -O2 -g -Wall -Wextra -Werror -nostdinc -c";
    let status = Command::new(&clang).args(arguments.split(' ')).arg(source).arg("-o").arg(&object).status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{clang} could not compile {source}: {status}"),
        Err(error) => panic!("cannot run {clang}: {error}; install clang (Debian: apt-get install clang) or set CLANG"),
    }
}
