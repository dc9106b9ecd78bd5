//! Where results go besides the results file: a file for each stream ([`OutputDir`]), a log in GNU parallel's form
//! ([`JobLog`]), and in the order of the input instead of that of the ends ([`in_order`](order::in_order)).

mod joblog;
pub mod order;
mod output_dir;

pub use joblog::JobLog;
pub use output_dir::OutputDir;
