//! hanse-tests: what the whole-process tests and the benchmarks share. The tests themselves are under `tests/`.

pub mod bare;
pub mod envoy;
pub mod house;
pub mod http;
pub mod limbo;
pub mod spire;
pub mod sweep;
pub mod wait;
pub mod world;
