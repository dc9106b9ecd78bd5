use std::sync::Mutex as StdMutex;

use futures_util::future::join_all;

use super::*;
use crate::worker::parcel::sample;

/// The events of an outbox.
#[derive(Default)]
struct Told(StdMutex<Vec<Event>>);

impl Observer for Told {
    fn on(&self, event: &Event) {
        self.0.lock().unwrap().push(event.clone());
    }
}

impl Told {
    /// Records and bytes, as last told.
    fn last(&self) -> (usize, u64) {
        let events = self.0.lock().unwrap();
        let last = events.iter().rev().find_map(|event| match event {
            Event::OutboxChanged { records, bytes } => Some((*records, *bytes)),
            _ => None,
        });
        last.expect("something was told")
    }

    fn failures(&self) -> usize {
        let events = self.0.lock().unwrap();
        events
            .iter()
            .filter(|event| matches!(event, Event::OutboxFailed))
            .count()
    }
}

async fn open(folder: &Path, id: &str, max_bytes: u64) -> (Spool, Arc<Told>) {
    let told = Arc::new(Told::default());
    let spool = Spool::open(folder.to_owned(), id, max_bytes, told.clone())
        .await
        .unwrap();
    (spool, told)
}

#[tokio::test]
async fn a_parcel_is_on_disk_until_it_is_confirmed() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, told) = open(folder.path(), "here", 1 << 20).await;
    assert_eq!(told.last(), (0, 0));
    let kept = spool.keep(&sample("job", 10)).await.expect("there is room");
    assert_eq!(told.last().0, 1);
    assert!(told.last().1 > 0);
    kept.confirmed().await;
    assert_eq!((told.last(), told.failures()), ((0, 0), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_parcels_at_once_are_all_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, told) = open(folder.path(), "gone", 1 << 20).await;
    let parcels: Vec<_> = (0..100)
        .map(|number| sample(&format!("job-{number}"), number))
        .collect();
    let kept: Vec<_> = join_all(parcels.iter().map(|parcel| spool.keep(parcel))).await;
    assert!(kept.iter().all(Option::is_some));
    assert_eq!(told.last().0, 100);
    drop((kept, spool));

    let (spool, _) = open(folder.path(), "here", 1 << 20).await;
    let mut left = Vec::new();
    for Left { entry, .. } in spool.left() {
        left.push(spool.read(*entry).await.expect("it is live"));
    }
    left.sort_by_key(|parcel| parcel.key);
    assert_eq!(left, parcels);
}

#[tokio::test]
async fn what_does_not_fit_is_counted_and_stays_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, told) = open(folder.path(), "here", 500).await;
    assert!(spool.keep(&sample("large", 1000)).await.is_none());
    assert!(spool.keep(&sample("larger", 2000)).await.is_none());
    assert_eq!((told.failures(), told.last()), (2, (0, 0)));
    assert!(spool.keep(&sample("small", 10)).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_failed_is_left_alone_for_a_while() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, told) = open(folder.path(), "here", 1 << 20).await;
    spool.0.disk.try_pass().expect("it is well").failed();
    assert!(spool.keep(&sample("job", 10)).await.is_none());
    assert_eq!((told.failures(), told.last()), (1, (0, 0)), "counted, and not written");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(spool.keep(&sample("job", 10)).await.is_some(), "tried again");
    assert!(spool.keep(&sample("job", 10)).await.is_some(), "and all is well");
    assert_eq!((told.failures(), told.last().0), (1, 2));
}

#[tokio::test]
async fn what_cannot_be_read_any_more_is_counted_and_let_go() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, _) = open(folder.path(), "gone", 1 << 20).await;
    let kept = spool.keep(&sample("job", 10)).await.expect("there is room");
    drop((kept, spool));
    let (spool, told) = open(folder.path(), "here", 1 << 20).await;
    let entry = spool.left()[0].entry;
    std::fs::write(folder.path().join("gone-0.outbox"), [0; 2000]).unwrap();
    assert!(spool.read(entry).await.is_none());
    assert_eq!(told.failures(), 1);
    spool.confirm(entry).await;
    assert_eq!(told.last(), (0, 0));
}

#[test]
fn each_destination_has_a_folder_of_its_own() {
    let name = |namespace: &str, hosts: &str, vhost: &str| {
        let folder = folder(Path::new("/state"), namespace, hosts, vhost);
        assert_eq!(folder.parent(), Some(Path::new("/state")));
        folder.file_name().unwrap().to_str().unwrap().to_owned()
    };
    assert_eq!(name("synthex", "b:5672,a:5672", "/"), "synthex@a:5672+b:5672%2F%2F");
    assert_eq!(
        name("synthex", "a:5672,b:5672", "/"),
        name("synthex", "b:5672,a:5672", "/")
    );
    assert_eq!(name("s", "h:1", "ä/../x"), "s@h:1%2F%C3%A4%2F..%2Fx");
    assert_ne!(name("s", "h:1", "a"), name("s", "h:1", "A"));
    let long = |end: &str| name("s", "h:1", &format!("{}{end}", "v".repeat(250)));
    assert!(long("a").len() <= 255);
    assert_ne!(long("a"), long("b"));
}
