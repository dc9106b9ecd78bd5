//! What the helper processes are told. Only the worker ever tells them anything, so garbage means that one of the two is
//! broken: a helper either goes on or ends in order, and in both cases leaves nothing.
//!
//! The packets are those of `executor::protocol`, as postcard writes them: the number of the kind, then its fields, each
//! text after its length.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::any;
use proptest::prop_oneof;
use proptest::strategy::Strategy;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use synthex::executor::spawner::SPAWNER_ARGUMENT;

use crate::change::changed;
use crate::for_some;
use crate::support::process::{Process, Signal, descendants, wait_until};

/// Processes are started for each.
const CASES: u32 = 48;

/// How long an answer or an end may take that has to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// The largest command that is taken (`MAX_START`), and an allocator's own comings and goings.
const MEMORY: u64 = (8 << 20) + (1 << 20);

/// Asks a spawner for a keeper.
const FORK: &[u8] = &[1];

/// A spawner whose worker is this test.
struct Spawner {
    child: Child,
    control: OwnedFd,
    folder: tempfile::TempDir,
}

impl Spawner {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = pair();
        let child = Command::new(env!("CARGO_BIN_EXE_synthex"))
            .arg(SPAWNER_ARGUMENT)
            .env_clear()
            .current_dir(folder.path()) // where a path of garbage is harmless
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            control: ours,
            folder,
        }
    }

    fn tell(&self, packet: &[u8]) -> bool {
        send(&self.control, packet, &[])
    }

    /// A new keeper's socket; `None` if the spawner is on its way out.
    fn keeper(&self) -> Option<OwnedFd> {
        self.tell(FORK);
        loop {
            match receive(&self.control)? {
                // The answer to something that was asked before.
                (_, descriptors) if descriptors.is_empty() => {}
                (_, mut descriptors) => return descriptors.pop(),
            }
        }
    }

    fn peak(&self) -> u64 {
        peak(self.child.id())
    }

    /// Lets go of it, and checks that it ends with one of two codes and leaves no process and no file.
    fn leaves_nothing(self) {
        let Self {
            mut child,
            control,
            folder,
        } = self;
        let below = descendants(child.id());
        drop(control);
        wait_until(PATIENCE, "a spawner ends that nobody needs", || {
            child.try_wait().unwrap().is_some()
        });
        let code = child.wait().unwrap().code();
        assert!(matches!(code, Some(0 | 1)), "it ended with {code:?}");
        wait_until(PATIENCE, "its keepers are gone", || {
            !below.iter().any(Process::is_alive)
        });
        drop(folder);
    }
}

/// Sends a packet; false if the other end is gone.
fn send(socket: &OwnedFd, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(5))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors)));
    sendmsg(socket, &[IoSlice::new(packet)], &mut control, SendFlags::NOSIGNAL).is_ok()
}

/// Waits for a packet, `None` is the end of them.
fn receive(socket: &OwnedFd) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let limit = Timespec::try_from(PATIENCE).unwrap();
    let ready = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&limit)).unwrap();
    assert!(ready > 0, "no answer and no end within {PATIENCE:?}");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(5))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; 64 * 1024];
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    );
    let count = received
        .ok()
        .map(|received| received.bytes)
        .filter(|count| *count > 0)?;
    bytes.truncate(count);
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Some((bytes, descriptors.flatten().collect()))
}

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

/// The most address space that a process had, in bytes; 0 of one that is gone.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    let kibibytes = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kibibytes.unwrap_or_default() * 1024
}

/// Asks a keeper for a command with stdout and stderr, an environment, and so many seconds of time.
fn start_packet(program: &str, seconds: u8) -> Vec<u8> {
    let block = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    [
        vec![0],                           // the command is in the packet
        block(&format!("{program}\0")),    // the files to try
        block(&format!("{program}\0-\0")), // its arguments
        block("A=b\0"),                    // what it shares of its environment
        block("C=d\0"),                    // and its own part
        block("/\0"),                      // its directory
        vec![0],                           // no warning
        vec![seconds, 0],                  // the timeout, with its nanoseconds
        block("TERM"),
        vec![1, 0], // the grace
        vec![0],    // leftovers are killed
        vec![0; 5], // no limits
        vec![0; 4], // no user, no umask, no gain, write anywhere
        vec![0],    // no stdin
    ]
    .concat()
}

/// Whether a keeper is there to run a command; if it is, checks that it says that it has ended.
fn runs_a_command(keeper: &OwnedFd) -> bool {
    let null = File::options().write(true).open("/dev/null").unwrap();
    send(keeper, &start_packet("/bin/true", 60), &[null.as_fd(); 2]);
    let Some((answer, _)) = receive(keeper) else {
        return false;
    };
    if answer.starts_with(&[1, 2]) {
        return false; // stopped, as the spawner is about to be gone
    }
    // It has ended, of its own accord, with a code, which is 0.
    assert_eq!(answer[..5], [1, 0, 1, 0, 0], "{answer:?}");
    true
}

fn packets(good: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<Vec<u8>>> {
    let any = vec(any::<u8>(), 1..200);
    let large = (1..=64_usize).prop_map(|kibibytes| vec![0x80; kibibytes * 1024]);
    // An empty packet is the end of all.
    let changed = changed(good).prop_filter("a packet holds something", |packet| !packet.is_empty());
    vec(prop_oneof![4 => changed, 2 => any, 1 => large], 1..4)
}

#[test]
fn a_spawner_that_is_told_garbage_goes_on_or_ends_and_leaves_nothing() {
    let good = vec![
        FORK.to_vec(),
        vec![2, 7],
        vec![3, 7],
        vec![2, 0xff, 0xff, 0xff, 0xff, 0x0f],
    ];
    for_some(CASES, &packets(good), |packets| {
        let spawner = Spawner::start();
        drop(spawner.keeper().expect("a spawner that has just begun"));
        let before = spawner.peak();
        for packet in &packets {
            spawner.tell(packet);
        }
        // The answer may be one to garbage before that which was the end.
        if spawner.keeper().is_some_and(|keeper| runs_a_command(&keeper)) {
            assert!(spawner.peak() <= before + MEMORY, "{before}, then {}", spawner.peak());
        }
        spawner.leaves_nothing();
    });
}

#[test]
fn a_keeper_that_is_told_garbage_answers_or_ends_and_its_spawner_goes_on() {
    let good = vec![
        start_packet("/bin/true", 1),
        start_packet("/bin/true", 1),
        vec![1, 20],
        vec![2],
    ];
    for_some(CASES, &(packets(good), 0..5_usize), |(packets, streams)| {
        let spawner = Spawner::start();
        let keeper = spawner.keeper().expect("a keeper");
        let before = descendants(spawner.child.id())
            .iter()
            .map(|keeper| peak(keeper.pid))
            .max()
            .unwrap();
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        for packet in &packets {
            send(&keeper, packet, &vec![null.as_fd(); streams]);
        }
        let next = spawner.keeper().expect("another keeper, whatever became of the first");
        assert!(runs_a_command(&next));
        for helper in descendants(spawner.child.id()) {
            assert!(
                peak(helper.pid) <= before + MEMORY,
                "{before}, then {}",
                peak(helper.pid)
            );
        }
        let first = descendants(spawner.child.id());
        drop(keeper);
        wait_until(PATIENCE, "a keeper that nobody needs ends", || {
            first.iter().filter(|helper| helper.is_alive()).count() <= 1
        });
        assert!(runs_a_command(&next));
        drop(next);
        spawner.leaves_nothing();
    });
}

/// What a helper cannot be talked into: ending anybody who is not its own.
#[test]
fn a_spawner_ends_no_process_that_is_not_its_keeper() {
    let mut bystander = Command::new("sleep").arg("600").spawn().unwrap();
    let process = Process::read(bystander.id()).unwrap();
    let spawner = Spawner::start();
    let keeper = spawner.keeper().expect("a keeper");
    let mut number = bystander.id();
    let mut packet = vec![2];
    while number >= 0x80 {
        packet.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
        number >>= 7;
    }
    packet.push(u8::try_from(number).unwrap());
    for kind in [2, 3] {
        packet[0] = kind;
        assert!(spawner.tell(&packet));
    }
    drop(spawner.keeper().expect("it is there, and has read all of it"));
    assert!(runs_a_command(&keeper));
    drop(keeper);
    assert!(process.is_alive());
    process.signal(Signal::KILL);
    bystander.wait().unwrap();
    spawner.leaves_nothing();
}
