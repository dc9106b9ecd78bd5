//! What the worker may rely on, whichever broker is behind [`Transport`]: one suite, run against both.
//!
//! Each test is written once, for any transport, and is there twice: `memory::…` on a paused clock, and `amqp::…` on a
//! virtual host of its own of a private RabbitMQ node.
//!
//! "Nothing comes" is shown by a bounded wait ([`bench::QUIET`]); everything else waits for what it names.

mod support;

#[path = "conformance/bench.rs"]
mod bench;
#[path = "conformance/dead_letters.rs"]
mod dead_letters;
#[path = "conformance/delay.rs"]
mod delay;
#[path = "conformance/deliveries.rs"]
mod deliveries;
#[path = "conformance/publishing.rs"]
mod publishing;
#[path = "conformance/sessions.rs"]
mod sessions;
#[path = "conformance/streams.rs"]
mod streams;
#[path = "conformance/topology.rs"]
mod topology;

use bench::{Bench, Sessions};
use support::broker::{self, Broker, Vhost};
use synthex::transport::amqp::Amqp;
use synthex::transport::memory::Memory;

/// A transport to a virtual host that nobody else uses.
async fn amqp() -> (Amqp, Vhost) {
    let vhost = Broker::shared().await.vhost().await;
    (broker::transport(&vhost.url(), bench::PATIENCE), vhost)
}

/// Makes two tests of each function that is named: a function left out is dead code, and so an error.
macro_rules! on_both {
    ($($file:ident: $($test:ident)+;)+) => {
        mod memory {
            $($(
                #[tokio::test(start_paused = true)]
                async fn $test() {
                    let broker = super::Memory::new();
                    let sessions = super::Sessions::Memory(broker.clone());
                    super::$file::$test(super::Bench::new(broker, sessions)).await;
                }
            )+)+
        }
        mod amqp {
            $($(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    let (broker, vhost) = super::amqp().await;
                    let sessions = super::Sessions::Amqp(vhost);
                    super::$file::$test(super::Bench::new(broker, sessions)).await;
                }
            )+)+
        }
    };
}

on_both! {
    deliveries:
        prefetch_is_honoured_exactly
        prefetch_counts_for_each_consumer
        deliveries_come_in_order
        an_acked_message_is_gone
        a_dropped_delivery_comes_again
        a_dropped_subscription_gives_back_what_it_had
        a_dropped_subscription_gives_back_at_once_what_nobody_took
        a_delivery_outlives_its_subscription
        a_message_given_back_takes_its_place_and_counts
        an_extended_subscription_gets_as_many_again_and_keeps_the_order
        an_extended_subscription_still_gives_what_nobody_took
        a_cancelled_subscription_ends_and_what_it_handed_out_stays_valid;
    dead_letters:
        a_rejected_message_is_dead_lettered_with_its_reason
        a_message_given_back_too_often_is_dead_lettered
        a_dead_letter_key_replaces_the_message_s_own
        our_own_headers_survive_a_publish_to_the_dead_exchange
        looking_at_a_dead_letter_does_not_destroy_it
        a_job_for_an_unknown_pool_is_kept_as_a_dead_letter;
    delay:
        a_message_comes_back_to_its_pool_after_its_tier
        a_shorter_tier_overtakes_a_longer_one
        a_delayed_message_arrives_as_it_was_sent;
    publishing:
        an_unroutable_message_is_an_error_only_if_somebody_must_get_it
        a_missing_exchange_is_an_error_and_harms_no_later_publish
        exchanges_route_by_their_kind
        refusals_are_told_of_the_right_messages_under_concurrency
        returns_are_told_of_the_right_messages_under_concurrency
        many_messages_are_told_of_each
        many_messages_keep_their_order
        nothing_is_sent_to_a_missing_exchange_many_at_a_time
        a_refused_message_is_accepted_once_there_is_room
        a_removed_queue_is_gone_with_its_consumer
        an_inbox_takes_replies_and_goes_with_its_subscription
        an_inbox_hears_of_the_topics_it_was_opened_for
        one_who_overhears_and_hangs_has_the_oldest_dropped
        a_queue_s_depth_counts_what_waits;
    sessions:
        a_lost_session_ends_the_subscription_and_the_next_one_works
        a_lost_session_does_not_stop_publishing;
    streams:
        every_reader_of_a_stream_gets_all_of_it_from_where_it_begins
        settling_takes_nothing_from_a_stream
        a_stream_goes_on_after_a_lost_session
        a_stream_s_depth_is_what_is_in_it;
    topology:
        a_passive_declare_names_what_is_missing
        a_passive_declare_takes_what_is_there
        a_repeated_declare_changes_nothing
        a_conflicting_declare_leaves_the_queue_as_it_is;
}
