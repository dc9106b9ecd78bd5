use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::sync::Barrier;

use super::*;
use crate::worker::parcel::sample;

const PLENTY: u64 = 1 << 20;

fn open(folder: &Path, name: &str) -> Store {
    Store::open(folder, name, PLENTY).unwrap()
}

/// Has a worker of this name leave parcels for jobs with these ids.
fn leave(folder: &Path, name: &str, ids: &[&str]) {
    let mut store = open(folder, name);
    let parcels: Vec<_> = ids.iter().map(|id| sample(id, 10)).collect();
    assert!(store.append(&parcels).iter().all(Result::is_ok));
    // Whoever is gone holds no lock, whatever it took over.
    assert!(store.left().is_empty());
}

fn left(store: &Store) -> Vec<String> {
    let id = |left: Left| store.read(left.entry).unwrap().expect("it is live").job_id.to_string();
    store.left().into_iter().map(id).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    outbox_files(folder).unwrap()
}

#[test]
fn a_worker_takes_over_what_others_left_and_removes_it_once_it_is_confirmed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("made/for it");
    leave(&folder, "gone", &["a", "b"]);
    assert_eq!(files(&folder).len(), 1);

    let mut store = open(&folder, "here");
    assert_eq!(left(&store), ["a", "b"]);
    let wanted = sample("a", 10);
    assert_eq!((&store.left()[0].pool, store.left()[0].key), (&wanted.pool, wanted.key));
    assert_eq!((store.records(), files(&folder).len()), (2, 2));
    let own = store.append(&[sample("own", 10)]).remove(0).unwrap();
    assert_eq!(left(&store), ["a", "b"], "what is ours is not left by others");
    for Left { entry, .. } in store.left() {
        store.confirm(entry).unwrap();
        assert!(store.read(entry).unwrap().is_none());
        store.confirm(entry).unwrap();
    }
    assert_eq!((store.records(), files(&folder).len()), (1, 1));
    store.confirm(own).unwrap();
    assert_eq!((store.records(), store.bytes()), (0, 0));
    drop(store);
    assert!(
        files(&folder).is_empty(),
        "a worker with nothing to leave leaves no file"
    );
}

#[test]
fn what_is_not_confirmed_goes_to_the_next_worker_too() {
    let folder = tempfile::tempdir().unwrap();
    leave(folder.path(), "gone", &["a", "b", "c"]);
    let mut second = open(folder.path(), "second");
    second.confirm(second.left()[0].entry).unwrap();
    let _own = second.append(&[sample("d", 10)]);
    drop(second);
    assert_eq!(left(&open(folder.path(), "third")), ["b", "c", "d"]);
}

#[test]
fn workers_that_start_at_once_take_over_each_file_once() {
    const WORKERS: usize = 8;
    for round in 0..10 {
        let folder = tempfile::tempdir().unwrap();
        let ids: Vec<String> = (0..20).map(|number| format!("job-{number}")).collect();
        // All at once, or a later one would take over what an earlier one leaves.
        let mut gone: Vec<Store> = ids.iter().map(|id| open(folder.path(), id)).collect();
        for (store, id) in gone.iter_mut().zip(&ids) {
            store.append(&[sample(id, 10)]).remove(0).unwrap();
        }
        drop(gone);
        let barrier = Barrier::new(WORKERS);
        let start = |number: usize| {
            barrier.wait();
            open(folder.path(), &format!("new-{number}"))
        };
        let stores: Vec<Store> = std::thread::scope(|scope| {
            let start = &start;
            let started: Vec<_> = (0..WORKERS).map(|number| scope.spawn(move || start(number))).collect();
            started.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let all: Vec<String> = stores.iter().flat_map(left).collect();
        assert_eq!(all.len(), ids.len(), "round {round}: {all:?}");
        assert_eq!(BTreeSet::from_iter(all), BTreeSet::from_iter(ids));
        let own: BTreeSet<_> = stores.iter().map(|store| store.own.path().to_owned()).collect();
        assert!(own.len() == WORKERS && own.iter().all(|path| path.exists()), "{own:?}");
    }
}

#[test]
fn what_others_left_counts_towards_the_bound() {
    let folder = tempfile::tempdir().unwrap();
    leave(folder.path(), "gone", &["a", "b", "c"]);
    let bytes = fs::metadata(&files(folder.path())[0]).unwrap().len();
    let mut store = Store::open(folder.path(), "here", bytes).unwrap();
    assert!(matches!(
        store.append(&[sample("own", 10)])[0],
        Err(SpoolError::Full { .. })
    ));
    for Left { entry, .. } in store.left() {
        store.confirm(entry).unwrap();
    }
    assert!(store.append(&[sample("own", 10)])[0].is_ok());
}

#[test]
fn what_is_no_outbox_file_is_left_as_it_is_and_holds_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    leave(folder.path(), "gone", &["a"]);
    fs::write(path("future.outbox"), "synthex outbox 2\n and what it may hold").unwrap();
    fs::write(path("notes.txt"), "not ours").unwrap();
    fs::create_dir(path("folder.outbox")).unwrap();
    symlink(path("notes.txt"), path("link.outbox")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path("pipe.outbox"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert_eq!(left(&open(folder.path(), "here")), ["a"]);
    for name in [
        "future.outbox",
        "notes.txt",
        "folder.outbox",
        "link.outbox",
        "pipe.outbox",
    ] {
        assert!(path(name).symlink_metadata().is_ok(), "{name} is gone");
    }
    // Empty, or of bytes that never were a header: nothing in them has ever counted.
    fs::write(path("empty.outbox"), "").unwrap();
    fs::write(path("zeros.outbox"), [0; 100]).unwrap();
    drop(open(folder.path(), "here"));
    assert!(!path("empty.outbox").exists() && !path("zeros.outbox").exists());
}

#[test]
fn the_folder_is_for_its_user_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox");
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    let _store = open(&path, "here");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, "").unwrap();
    let error = Store::open(&path.join("outbox"), "here", PLENTY)
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("file/outbox"), "{error}");
}
