//! The `hanse` program.

/// Requests allocate small things and free them on the same thread: that is what it is fast at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    hanse::run()
}
