//! Commands that misbehave on purpose, each with exactly what must come of it, through the binary on both transports.
//!
//! - [`members`]: the zoo itself, a table of commands and their results; the commands are in `tests/fixtures/zoo`.
//! - [`exhibits`]: each of them alone, and all of them at once.
//! - [`attribution`]: two jobs whose processes look alike; only the right ones die.
//! - [`deaths`]: the worker, its spawners and its keepers are killed, or stopped, while jobs run.
//! - [`pools`]: what a pool's file allows, and as whom commands run.
//! - [`scripts`]: programs that were written a moment ago.
//! - [`soak`]: tens of thousands of such jobs through one worker, which is what it was before.
//!
//! Every test is written once and is there twice: with `synthex run`, which is given jobs on stdin, and with
//! `synthex worker` on RabbitMQ ([`worker::Via`]). What a job starts is found by several marks at once, none of which a
//! process can take off all of ([`cage::Cage`]).
//!
//! Nothing sleeps to synchronise. Where a time is asserted, it is one that was promised: a second after deadline and
//! grace, two seconds after the death of a worker.

#![allow(
    clippy::unwrap_used,        // a test that cannot go on should stop
    clippy::disallowed_methods  // threads and variables of tests are their own
)]

mod support;

#[path = "zoo/attribution.rs"]
mod attribution;
#[path = "zoo/cage.rs"]
mod cage;
#[path = "zoo/deaths.rs"]
mod deaths;
#[path = "zoo/exhibits.rs"]
mod exhibits;
#[path = "zoo/helpers.rs"]
mod helpers;
#[path = "zoo/members.rs"]
mod members;
#[path = "zoo/pools.rs"]
mod pools;
#[path = "zoo/rabbit.rs"]
mod rabbit;
#[path = "zoo/scripts.rs"]
mod scripts;
#[path = "zoo/soak.rs"]
mod soak;
#[path = "zoo/worker.rs"]
mod worker;

use worker::Via;

/// Makes two tests of each function that is named: a function left out is dead code, and so an error.
macro_rules! on_both {
    (
        members: $($member:ident)+;
        $($file:ident: $($test:ident)+;)+
    ) => {
        /// Every member of the zoo.
        pub const MEMBERS: &[members::Make] = &[$(members::$member),+];

        mod embedded {
            $(
                #[test]
                fn $member() {
                    super::exhibits::alone(super::Via::Run, super::members::$member);
                }
            )+
            $($(
                #[test]
                fn $test() {
                    super::$file::$test(super::Via::Run);
                }
            )+)+
        }
        mod rabbitmq {
            $(
                #[test]
                fn $member() {
                    super::exhibits::alone(super::Via::Worker, super::members::$member);
                }
            )+
            $($(
                #[test]
                fn $test() {
                    super::$file::$test(super::Via::Worker);
                }
            )+)+
        }
    };
}

on_both! {
    members:
        term_ignorer
        double_forker
        daemon
        daemon_of_a_command_that_times_out
        pipe_holder
        daemon_that_holds_the_pipe
        flooder
        fork_chain
        fork_chain_that_goes_on
        fork_chain_of_a_command_that_times_out
        fork_tree
        fork_tree_of_a_command_that_times_out
        hydra
        stopped_self
        stopped_tree
        stopped_leftovers
        mute
        missing_interpreter
        written_and_run
        argument_too_long
        arguments_too_many
        arguments_of_a_mebibyte
        zombie_maker
        zombie_maker_that_times_out
        crash
        abort
        parent_killer
        group_killer
        warned
        unwarned
        seeker_of_rights
        descriptor_lister
        environment_lister
        session_leader
        signal_lister
        uid_changer;
    exhibits:
        the_whole_zoo_at_once;
    attribution:
        of_jobs_that_look_alike_only_the_right_ones_die;
    deaths:
        a_killed_worker_leaves_nothing
        a_killed_worker_leaves_nothing_though_its_keepers_are_stopped
        a_keeper_that_is_killed_takes_its_job_and_no_other
        a_spawner_that_is_killed_takes_its_jobs_and_is_replaced
        all_spawners_killed_at_once_are_replaced
        all_keepers_killed_at_once_are_replaced
        a_spawner_killed_with_its_keepers_leaves_nothing
        a_stopped_worker_is_late_for_nothing_and_kills_nothing;
    pools:
        leftovers_that_are_allowed_live_on
        a_setuid_program_gives_no_rights;
    scripts:
        scripts_written_and_run_by_many_jobs_at_once
        a_program_still_open_for_writing_is_waited_for;
    soak:
        thousands_of_jobs_leave_the_worker_as_it_was;
}
