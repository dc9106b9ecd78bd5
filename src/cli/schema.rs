//! `synthex schema`: the contracts, for tools.

use clap::{Args, ValueEnum};

use super::exit::{Exit, Failure};
use super::print;
use crate::config;
use crate::message;

#[derive(Args)]
pub(super) struct SchemaArgs {
    /// Which schema
    what: What,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// What a producer publishes
    Job,
    /// What a worker answers
    Result,
    /// What an operator tells workers, and what they reply
    Control,
    /// What is said of batches, and a line of a results file
    Batch,
    /// A pool file, read as JSON
    Pool,
}

pub(super) async fn run(args: &SchemaArgs) -> Result<Exit, Failure> {
    let schema = match args.what {
        What::Job => message::schema::job(),
        What::Result => message::schema::result(),
        What::Control => message::schema::control(),
        What::Batch => message::schema::batch(),
        What::Pool => config::schema(),
    };
    print::data(message::schema::render(&schema).as_bytes())
        .await
        .map_err(|error| Failure::io("write to stdout", &error))?;
    Ok(Exit::Done)
}
