//! What holds when things go wrong: under load, at a stop, at a cut at any point, and with a broker that breaks.
//!
//! - [`live`]: who listens to a job hears each byte once, and a broker that takes no events harms no job.
//! - [`flow`]: rates, commands that cannot be started, a broker that takes nothing.
//! - [`load`]: five thousand mixed jobs through a small worker; all end, once, and nothing is left.
//! - [`shutdown`]: the first signal drains, the second aborts, wherever the worker is.
//! - [`alone`]: a job that may be killing its workers, and what it has to share a worker with.
//! - [`cancellation`]: the worker's future is dropped, or its sessions end, at scripted points.
//! - [`dead`]: dead letters are looked at, retried and dropped, and the one who does it is cut short.
//! - [`orders`]: cancelled, paused, resumed, wherever the jobs are.
//! - [`random`]: the same at points that nobody chose, with a seed.
//! - [`supervision`]: panics are contained, what ends unasked is started again, within bounds.
//! - [`outbox`]: results that wait on disk, and who publishes them.
//! - [`crash`]: `synthex worker` killed while RabbitMQ is away, and with a full disk.
//! - [`bounds`]: the same with everything stuck at once: memory is flat, and it recovers.
//! - [`private_broker`]: `synthex worker` as a process, and a RabbitMQ node that is killed, frozen, short of memory.
//! - [`tls`]: certificates good and bad, and passwords that change.
//!
//! But for the last four, each test is written once and is there twice: on the in-process broker and on RabbitMQ. Faults come
//! from [`support::faulty`], so that they come where the test says.

mod support;

#[path = "faults/alone.rs"]
mod alone;
#[path = "faults/bounds.rs"]
mod bounds;
#[path = "faults/cancellation.rs"]
mod cancellation;
#[path = "faults/crash.rs"]
mod crash;
#[path = "faults/dead.rs"]
mod dead;
#[path = "faults/flow.rs"]
mod flow;
#[path = "faults/live.rs"]
mod live;
#[path = "faults/load.rs"]
mod load;
#[path = "faults/orders.rs"]
mod orders;
#[path = "faults/outbox.rs"]
mod outbox;
#[path = "faults/private_broker.rs"]
mod private_broker;
#[path = "faults/random.rs"]
mod random;
#[path = "faults/rig.rs"]
mod rig;
#[path = "faults/shutdown.rs"]
mod shutdown;
#[path = "faults/supervision.rs"]
mod supervision;
#[path = "faults/tls.rs"]
mod tls;

use rig::{Rig, Sessions};
use support::broker::{self, Broker, Vhost};
use synthex::transport::amqp::Amqp;
use synthex::transport::memory::Memory;

/// A transport to a virtual host that nobody else uses.
async fn amqp() -> (Amqp, Vhost) {
    let vhost = Broker::shared().await.vhost().await;
    (transport(&vhost), vhost)
}

/// A transport to a virtual host, which waits for its broker as long as a test does.
fn transport(vhost: &Vhost) -> Amqp {
    broker::transport(&vhost.url(), rig::PATIENCE)
}

/// Makes two tests of each function that is named: a function left out is dead code, and so an error.
macro_rules! on_both {
    ($($file:ident: $($test:ident)+;)+) => {
        mod memory {
            $($(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    let broker = super::Memory::new();
                    let sessions = super::Sessions::Memory(broker.clone());
                    super::$file::$test(super::Rig::new(broker, sessions).await).await;
                }
            )+)+
        }
        mod amqp {
            $($(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    let (broker, vhost) = super::amqp().await;
                    let sessions = super::Sessions::Amqp(vhost);
                    super::$file::$test(super::Rig::new(broker, sessions).await).await;
                }
            )+)+
        }
    };
}

on_both! {
    live:
        who_comes_in_the_middle_hears_each_byte_once
        a_broker_that_takes_no_events_holds_no_job_up;
    load:
        five_thousand_mixed_jobs_all_end_once_and_leave_nothing;
    shutdown:
        running_jobs_finish_and_unstarted_ones_go_back_unmarked
        jobs_on_their_way_when_the_stop_comes_go_back_unmarked
        stops_under_flow_mark_no_job
        a_running_job_that_comes_again_with_the_stop_is_not_run_again
        a_stop_during_the_wait_for_the_broker_is_obeyed_at_once
        a_stop_during_an_attempt_to_subscribe_is_obeyed_at_once
        a_stop_waits_for_a_result_s_confirm
        a_result_that_is_not_confirmed_within_the_grace_is_given_up_and_its_job_given_back
        a_second_signal_gives_up_a_result_that_hangs
        a_second_signal_kills_what_runs_and_gives_it_back
        a_stop_outlives_a_broker_that_does_not_answer_the_cancellation
        a_stop_outlives_a_broker_that_takes_no_unstarted_job_back;
    alone:
        a_suspect_waits_for_its_neighbours_and_holds_up_who_comes_later
        a_suspect_whose_neighbour_never_ends_is_put_off_and_runs_at_last
        a_suspect_that_waits_in_vain_here_runs_on_an_empty_worker;
    cancellation:
        dropped_while_a_job_waits_for_its_slot_it_loses_and_leaves_nothing
        dropped_before_a_result_has_arrived_the_job_runs_again_and_ends_once
        dropped_after_a_result_has_arrived_the_job_ends_again_with_a_higher_attempt
        dropped_between_result_and_ack_the_job_ends_again_with_a_higher_attempt
        dropped_while_a_redelivery_is_counted_the_job_is_neither_lost_nor_started
        dropped_before_a_dead_letter_has_arrived_it_arrives_later
        dropped_between_retry_and_ack_both_go_on_from_the_same_attempt
        sessions_lost_while_jobs_run_and_wait_run_none_of_them_twice
        sessions_lost_before_a_result_has_arrived_lose_neither_it_nor_the_job
        sessions_lost_between_result_and_ack_run_no_job_again
        an_ack_that_is_lost_brings_the_job_again_and_it_is_only_acked
        a_new_submission_of_an_old_id_always_runs
        a_result_of_unknown_fate_is_published_until_it_is_confirmed
        a_subscription_that_ends_again_and_again_loses_no_job;
    dead:
        looking_at_letters_changes_nothing_however_often
        every_way_to_the_dead_letters_is_told_by_its_reason
        a_retried_job_runs_as_a_new_submission
        letters_are_retried_and_dropped_as_they_were_selected
        a_retry_for_a_pool_without_a_queue_publishes_nothing
        a_job_of_unknown_fate_keeps_its_letter
        a_job_that_is_refused_keeps_its_letter
        an_ack_that_is_lost_leaves_a_letter_although_its_job_runs_again
        a_retry_that_is_cut_loses_nothing
        a_pass_whose_sessions_are_lost_says_so_and_loses_nothing;
    flow:
        jobs_that_wait_for_their_rate_have_no_slot_and_go_back_at_a_stop
        a_burst_leaves_no_more_in_hand_than_prefetch
        who_waits_for_a_rate_is_told_of_its_end_at_once
        jobs_of_a_command_that_cannot_be_started_wait_until_it_can
        a_command_that_can_never_be_started_has_its_result_in_the_end
        while_the_broker_takes_nothing_one_result_tries_for_all;
    orders:
        no_job_starts_before_the_orders_are_read
        a_cancel_ends_what_runs_and_what_waits_for_its_slot
        a_cancelled_command_has_its_grace
        a_pause_gives_back_what_was_not_started_until_it_is_resumed;
    outbox:
        results_that_are_confirmed_at_once_never_touch_the_disk
        a_result_whose_publish_fails_is_on_disk_until_it_is_confirmed
        a_result_that_is_never_confirmed_is_published_by_the_next_worker
        a_dead_letter_that_is_never_confirmed_is_published_by_the_next_worker;
    random:
        any_mix_of_faults_and_cuts_loses_no_job_and_starts_none_uncounted;
    supervision:
        a_panic_in_a_job_s_task_is_contained_counted_and_costs_no_job
        an_intake_that_panics_is_started_again_and_running_jobs_go_on
        an_intake_that_panics_again_and_again_stops_the_worker_in_good_order
        a_first_subscription_that_is_refused_stops_the_worker_and_says_why;
}
