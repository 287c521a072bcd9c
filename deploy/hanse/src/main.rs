//! The `hanse` program.

fn main() -> std::process::ExitCode {
    hanse::run()
}
