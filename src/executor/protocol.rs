//! What the worker and its helper processes say to each other.
//!
//! Three conversations, all over `SOCK_SEQPACKET` sockets, which keep the borders of messages and tell each end when
//! the other has died:
//!
//! - the worker asks a spawner for a keeper, or to make an end of one ([`ToSpawner`]), and gets the keeper's socket as a
//!   descriptor beside [`FromSpawner`];
//! - the worker gives a keeper a command ([`ToKeeper::Start`], its streams as descriptors) and gets one answer, when
//!   all of it is over ([`FromKeeper`]);
//! - closing the socket is a message too: kill everything.
//!
//! Both ends are the same build of the same program, so the encoding (postcard) needs no versions. Everything is
//! bounded: a message that does not fit into a packet goes through a memory file, and one over [`MAX_START`], which is
//! more than the kernel takes as arguments and environment, is refused before it is sent.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::cmsg_space;
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, Serializer};

use super::cgroup::Domain;
use super::limits::Bounds;
use super::{Leftovers, Rights, Warning};
use crate::message::{EndedBy, SignalName};

/// Bytes of a packet; what is more goes through a memory file. A socket's buffer holds several of them by default.
pub(super) const MAX_PACKET: usize = 32 * 1024;

/// Bytes of a whole [`Start`]. The kernel takes at most 6 MiB of arguments and environment (execve(2)).
pub(super) const MAX_START: usize = 8 << 20;

/// Descriptors beside a packet: three streams and a memory file.
const MAX_DESCRIPTORS: usize = 4;

/// What the worker asks of a spawner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ToSpawner {
    /// Keepers that hold each job in a cgroup of its own, from now on. Not answered.
    UseGroups(Domain),
    /// A keeper; answered by [`FromSpawner`].
    Fork,
    /// The end of a keeper that does not answer any more, by its process number. Not answered.
    Discard(u32),
    /// That a keeper stays behind with what its job was allowed to leave. Not answered.
    Release(u32),
}

/// What a spawner answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FromSpawner {
    /// A keeper with this process number; its socket is beside the message.
    Forked(u32),
    /// No process could be had, by the number of the error.
    Refused(i32),
}

/// What the worker tells a keeper.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ToKeeper<'a> {
    /// A command; its streams are beside the message.
    #[serde(borrow)]
    Start(Box<Start<'a>>),
    /// A command whose [`Start`] of this many bytes is in the memory file behind its streams.
    StartInFile(u32),
    /// Ask all of it to end, as at its timeout.
    End,
    /// Kill all of it now.
    Kill,
}

/// A command, with everything it gets. Lists of strings are one block in which each string ends with a NUL, as the
/// kernel wants them.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Start<'a> {
    /// The files to try, in their order.
    #[serde(serialize_with = "whole")]
    pub(super) candidates: &'a [u8],
    /// The program's name and its arguments.
    #[serde(serialize_with = "whole")]
    pub(super) argv: &'a [u8],
    /// The environment, as `KEY=value`: what it shares with other commands.
    #[serde(serialize_with = "whole")]
    pub(super) shared_env: &'a [u8],
    /// And the rest of it.
    #[serde(serialize_with = "whole")]
    pub(super) own_env: &'a [u8],
    /// The directory, NUL-ended; empty for the helper's own, which is the worker's.
    #[serde(serialize_with = "whole")]
    pub(super) cwd: &'a [u8],
    /// When it is warned, asked and killed.
    pub(super) schedule: Schedule,
    /// What becomes of processes that outlive it.
    pub(super) leftovers: Leftovers,
    /// How much it may use.
    pub(super) bounds: Bounds,
    /// What it may do.
    pub(super) rights: Rights,
    /// Whether a reading end for its stdin is the first of the descriptors.
    pub(super) has_stdin: bool,
}

/// Writes bytes in one go, where a slice is otherwise written one by one.
fn whole<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_bytes(bytes)
}

/// When a command is warned, asked to end and killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Schedule {
    /// The signal before the timeout.
    pub(super) warning: Option<Warning>,
    /// From the start of the program.
    pub(super) timeout: Duration,
    /// What all of it gets at the timeout.
    pub(super) term_signal: SignalName,
    /// From then until SIGKILL.
    pub(super) kill_grace: Duration,
}

/// A keeper's one answer to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FromKeeper {
    /// It could not be started.
    Failed(Failure),
    /// It is over.
    Ended(Report),
}

/// Which step of a start failed, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failure {
    pub(super) step: Step,
    /// As in errno(3).
    pub(super) errno: i32,
}

/// The steps of a start that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u32)]
pub(super) enum Step {
    /// Reading the request.
    Request = 1,
    /// Building what restricts its writing.
    Writable,
    /// Putting it into a cgroup.
    Cgroup,
    /// Making a process.
    Fork,
    /// A session and streams of its own.
    Session,
    /// A resource limit.
    Limit,
    /// Another user.
    User,
    /// Forgoing rights.
    Rights,
    /// Its directory.
    Cwd,
    /// Loading the program.
    Exec,
}

impl Step {
    pub(super) const ALL: [Self; 10] = [
        Self::Request,
        Self::Writable,
        Self::Cgroup,
        Self::Fork,
        Self::Session,
        Self::Limit,
        Self::User,
        Self::Rights,
        Self::Cwd,
        Self::Exec,
    ];
}

/// How a command ended, and all it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    /// What brought the end about.
    pub(super) cause: Cause,
    /// How the command's own process ended; `None` if even SIGKILL did not end it in time.
    pub(super) exit: Option<Exit>,
    /// The step at which it was gone.
    pub(super) ended_by: EndedBy,
    /// From the request to the running program.
    pub(super) spawn: Duration,
    /// From there to the end of the command's own process, or to the first signal to end it.
    pub(super) run: Duration,
    /// From the running program to the end of the command's own process.
    pub(super) lasted: Duration,
    /// From the end of `run` until the last process was gone, if there was one to make an end of.
    pub(super) kill: Option<Duration>,
    /// What all reaped processes used.
    pub(super) used: Used,
    /// Whether a cgroup held its memory.
    pub(super) memory_in_cgroup: bool,
    /// Whether a cgroup held the number of its processes.
    pub(super) processes_in_cgroup: bool,
    /// Whether the kernel killed in its cgroup for want of memory.
    pub(super) out_of_memory: bool,
    /// Whether the keeper takes another command.
    pub(super) reusable: bool,
    /// Whether the keeper stays behind with what the job was allowed to leave.
    pub(super) released: bool,
}

/// What brought a command's end about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Cause {
    /// It ended.
    Exit,
    /// Its timeout.
    Timeout,
    /// The worker's wish.
    Stop,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// What processes used of the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Used {
    /// In their own code.
    pub(super) user: Duration,
    /// In the kernel.
    pub(super) system: Duration,
    /// The most that one of them had resident, in bytes.
    pub(super) max_rss: u64,
}

/// What came out of a socket.
pub(super) enum Packet {
    /// So many bytes of the buffer are a message.
    Message(usize, Vec<OwnedFd>),
    /// The other end is closed.
    Closed,
}

/// Sends one message with descriptors. Never waits on a non-blocking socket.
///
/// # Errors
///
/// When the other end is gone, or the message is larger than a packet.
pub(super) fn send<T: Serialize>(socket: impl AsFd, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = encode(message)?;
    send_bytes(socket, &bytes, fds)
}

/// Sends one encoded message with descriptors.
///
/// # Errors
///
/// As [`send`].
pub(super) fn send_bytes(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.len() > MAX_PACKET {
        return Err(Errno::MSGSIZE.into());
    }
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::INVAL.into());
    }
    let sent =
        rustix::io::retry_on_intr(|| sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL))?;
    debug_assert_eq!(sent, bytes.len(), "a packet is sent whole or not at all");
    Ok(())
}

/// Takes one message out of a socket, into `buffer`, which holds [`MAX_PACKET`] bytes.
///
/// # Errors
///
/// When there is none and the socket does not wait, when the other end closed it with something unread in it
/// (ECONNRESET), or when the packet is larger than any that is sent.
pub(super) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Packet> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(
            &socket,
            &mut [IoSliceMut::new(buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let descriptors: Vec<OwnedFd> = descriptors.flatten().collect();
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(Errno::MSGSIZE.into());
    }
    Ok(match received.bytes {
        0 => Packet::Closed,
        count => Packet::Message(count, descriptors),
    })
}

/// Encodes a message.
///
/// # Errors
///
/// Never for the types above; a type that postcard cannot write would be a bug.
pub(super) fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    encode_sized(message, 0)
}

/// Encodes a message of about so many bytes, for which there is room from the beginning.
///
/// # Errors
///
/// As [`encode`].
pub(super) fn encode_sized<T: Serialize>(message: &T, size: usize) -> io::Result<Vec<u8>> {
    postcard::to_extend(message, Vec::with_capacity(size)).map_err(io::Error::other)
}

/// Decodes a message, borrowing from its bytes.
///
/// # Errors
///
/// When the bytes are not one.
pub(super) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> io::Result<T> {
    postcard::from_bytes(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::any;
    use proptest::proptest;
    use proptest::sample::Index;
    use proptest::test_runner::Config;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::super::UserIds;
    use super::*;

    /// Bytes are a message of this type, or an error. What is decoded holds no more than the bytes did, since it is no
    /// longer when it is encoded again.
    fn check<'a, T: Serialize + Deserialize<'a>>(bytes: &'a [u8]) {
        if let Ok(message) = decode::<T>(bytes) {
            let again = encode(&message).unwrap();
            assert!(again.len() <= bytes.len(), "{again:?}");
        }
    }

    fn check_all(bytes: &[u8]) {
        check::<ToSpawner>(bytes);
        check::<FromSpawner>(bytes);
        check::<ToKeeper>(bytes);
        check::<FromKeeper>(bytes);
        check::<Start>(bytes);
    }

    fn start() -> ToKeeper<'static> {
        ToKeeper::Start(Box::new(Start {
            candidates: b"/bin/true\0",
            argv: b"true\0--help\0\0",
            shared_env: b"A=\xff\0",
            own_env: b"B=b\0",
            cwd: b"/\0",
            schedule: Schedule {
                warning: Some(Warning {
                    before: Duration::from_secs(1),
                    signal: "USR1".parse().unwrap(),
                }),
                timeout: Duration::MAX,
                term_signal: "TERM".parse().unwrap(),
                kill_grace: Duration::from_nanos(1),
            },
            leftovers: Leftovers::Allow,
            bounds: Bounds::default(),
            rights: Rights {
                user: Some(UserIds {
                    uid: 1,
                    gid: 1,
                    groups: vec![1, 2],
                }),
                umask: Some(0o22),
                may_gain: true,
                writable: Some(vec!["/tmp".into()]),
            },
            has_stdin: true,
        }))
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error() {
        proptest!(config(), |(bytes in vec(any::<u8>(), 0..200))| check_all(&bytes));
    }

    #[test]
    fn a_command_with_bytes_changed_is_a_message_or_an_error() {
        let whole = encode(&start()).unwrap();
        let changes = vec((any::<Index>(), any::<u8>()), 1..5);
        proptest!(config(), |(changes in changes, end in 1..=whole.len())| {
            let mut bytes = whole.clone();
            for (at, byte) in changes {
                bytes[at.index(whole.len())] = byte;
            }
            check_all(&bytes);
            check_all(&bytes[..end]);
        });
    }

    /// A failure shows the input itself, which is all that it takes to repeat it.
    fn config() -> Config {
        Config {
            failure_persistence: None, // no test writes into the sources
            ..Config::default()
        }
    }

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn a_command_survives_its_way() {
        let start = start();
        let bytes = encode(&start).unwrap();
        assert_eq!(decode::<ToKeeper>(&bytes).unwrap(), start);
        for end in 0..bytes.len() {
            assert!(decode::<ToKeeper>(&bytes[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn a_packet_brings_its_descriptors_and_a_closed_end_is_told_from_an_unread_message() {
        let (ours, theirs) = pair();
        let mut buffer = vec![0; MAX_PACKET];
        send(&ours, &ToSpawner::Fork, &[ours.as_fd(), theirs.as_fd()]).unwrap();
        let Packet::Message(count, fds) = receive(&theirs, &mut buffer).unwrap() else {
            panic!("closed");
        };
        assert_eq!(decode::<ToSpawner>(&buffer[..count]).unwrap(), ToSpawner::Fork);
        assert_eq!(fds.len(), 2);
        drop(fds);

        send(&ours, &ToSpawner::Discard(1), &[]).unwrap();
        drop(theirs);
        let unread = receive(&ours, &mut buffer).err().unwrap();
        assert_eq!(unread.kind(), io::ErrorKind::ConnectionReset);

        let (ours, theirs) = pair();
        drop(theirs);
        assert!(matches!(receive(&ours, &mut buffer), Ok(Packet::Closed)));
    }

    #[test]
    fn what_is_larger_than_a_packet_is_not_sent() {
        let (ours, _theirs) = pair();
        assert!(send_bytes(&ours, &vec![1; MAX_PACKET], &[]).is_ok());
        assert!(send_bytes(&ours, &vec![1; MAX_PACKET + 1], &[]).is_err());
    }
}
