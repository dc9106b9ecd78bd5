//! Who listens, and what that may cost.

use std::time::Duration;

use serde_json::json;
use synthex::events::{OVERHEARD_MAX, Said, Transcript, output_topics};
use synthex::message::event::Event as Published;
use synthex::message::{JobId, Reply, Stream};
use synthex::transport::{Publication, Subscription, Transport};
use synthex::worker::Audience;
use synthex::worker::audience::Stay;
use synthex::worker::event::{About, Event, Listener};

use crate::rig::{Rig, soon};
use crate::support::faulty::{Faulty, Gate, PublishFault};

pub async fn who_comes_in_the_middle_hears_each_byte_once<T: Transport>(rig: Rig<T>) {
    let audience = Audience::default();
    let live = rig.work_heard(rig.broker.clone(), rig.pool(), audience.clone());
    let (id, begun, gate) = ("heard", rig.path("begun"), rig.path("gate"));
    let job: JobId = id.parse().expect("it is one");
    let script = format!(
        "echo before; printf '\\377' >&2; touch {}; until [ -e {} ]; do sleep 0.02; done; echo after; echo x >&2",
        begun.display(),
        gate.display()
    );
    rig.publish(id, &json!({ "script": script })).await;
    let writing = async {
        while !begun.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon("its first words", writing).await;

    let topics = output_topics(&rig.names, &job);
    let overhearing = rig.broker.overhear(&topics, OVERHEARD_MAX);
    let (reply_to, mut inbox) = soon("an inbox", overhearing).await.expect("an inbox");
    let listener = Listener {
        reply_to,
        correlation_id: None,
    };
    audience.follow(&job, listener, Stay::Follow).expect("there is room");
    let (mut transcript, mut heard) = (Transcript::default(), [Vec::new(), Vec::new()]);
    loop {
        let delivery = soon("what is written", inbox.next())
            .await
            .expect("the session is live");
        let body = delivery.envelope.body.clone();
        delivery.ack().await.expect("the session is live");
        let said = match (Published::decode(&body), Reply::decode(&body)) {
            (Ok(event), _) => transcript.event(&event),
            (_, Ok(Reply::Output { run, chunks })) => {
                rig.open("gate");
                transcript.answer(&run, &chunks)
            }
            _ => panic!("neither: {body:?}"),
        };
        for said in &said {
            match said {
                Said::Bytes(_, chunk) => {
                    let stream = usize::from(chunk.stream == Stream::Stderr);
                    heard[stream].extend(chunk.decode().expect("a chunk of ours"));
                }
                Said::Missing(..) => panic!("{said:?}"),
                Said::Began(_) | Said::Ended { .. } => {}
            }
        }
        if matches!(said.last(), Some(Said::Ended { is_final: true, .. })) {
            break;
        }
    }
    assert_eq!(heard, [b"before\nafter\n".to_vec(), b"\xffx\n".to_vec()]);
    live.stop().await;
}

/// An event, of whatever.
fn events(publication: &Publication) -> bool {
    publication.exchange.ends_with(".events")
}

pub async fn a_broker_that_takes_no_events_holds_no_job_up<T: Transport>(rig: Rig<T>) {
    let broker = Faulty::new(rig.broker.clone());
    broker.on_publish(events, 1..=1, PublishFault::HangsBefore(Gate::default()));
    broker.on_publish(events, 2.., PublishFault::Refused);
    let live = rig.work_heard(broker, rig.pool(), Audience::default());
    let job = json!({"command": ["echo", "live"], "output": {"live": true}});
    let ids: Vec<String> = (0..20).map(|number| format!("live-{number}")).collect();
    for id in &ids {
        rig.publish(id, &job).await;
    }
    let ends = rig.wait_for_ends(ids.clone()).await;
    assert_eq!(ends.len(), ids.len());
    let stopped = live.stop().await;
    let heard = |event: &Event| matches!(event, Event::OutputEnded { .. });
    assert_eq!(stopped.observer.count(heard), ids.len());
    let metrics = stopped.metrics.render();
    let none = format!(
        "synthex_events_published_total{{about=\"{}\"}} 0",
        About::Output.as_str()
    );
    assert!(metrics.contains(&none), "{metrics}");
}
