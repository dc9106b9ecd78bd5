//! Many jobs from one place, through the binary: `synthex run` and `synthex batch`.

#![allow(
    clippy::unwrap_used,        // a test that cannot go on should stop
    clippy::disallowed_methods  // thread::sleep, between looks at what gives no event
)]

mod support;

#[path = "batch/elsewhere.rs"]
mod elsewhere;
#[path = "batch/fleet.rs"]
mod fleet;
#[path = "batch/inputs.rs"]
mod inputs;
#[path = "batch/large.rs"]
mod large;
#[path = "batch/outputs.rs"]
mod outputs;
#[path = "batch/policy.rs"]
mod policy;
#[path = "batch/recipes.rs"]
mod recipes;
#[path = "batch/resume.rs"]
mod resume;
#[path = "batch/terminal.rs"]
mod terminal;
