//! Checks the file it is given and prints the effective configuration or the complaints.

fn main() -> std::process::ExitCode {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("usage: check FILE");
        return std::process::ExitCode::from(2);
    };
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) => {
            eprintln!("{path}: {error}");
            return std::process::ExitCode::FAILURE;
        }
    };
    match confparse::parse(&String::from_utf8_lossy(&bytes), &path) {
        Ok(parsed) => {
            parsed.warnings.iter().for_each(|warning| eprintln!("{warning}"));
            print!("{}", parsed.config.describe());
            std::process::ExitCode::SUCCESS
        }
        Err(errors) => {
            eprintln!("{errors}");
            std::process::ExitCode::FAILURE
        }
    }
}
