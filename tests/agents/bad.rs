//! The bad agent of `tests/bad_agents.rs`. An example to cargo, because only those may use the test kit.

fn main() {
    optio_testkit::bad_agent::main();
}
