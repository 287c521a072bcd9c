//! hanse-tests: what the whole-process tests and the benchmarks share. The tests themselves are under `tests/`.

pub mod envoy;
pub mod house;
pub mod http;
pub mod limbo;
pub mod sweep;
pub mod world;
