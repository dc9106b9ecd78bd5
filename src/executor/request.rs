//! Puts a run into the words of the protocol.

use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::{fs, io};

use rustix::fs::MemfdFlags;

use super::client::Keeper;
use super::limits::Bounds;
use super::protocol::{self, MAX_PACKET, MAX_START, Schedule, Start, ToKeeper};
use super::{Fault, NotStarted, Run, program};
use crate::message::FailureKind;

/// A command, encoded for a keeper.
pub(super) struct Request {
    bytes: Vec<u8>,
    /// What `bytes` refers to, when they are more than a packet.
    file: Option<OwnedFd>,
}

impl Request {
    /// Encodes a run.
    ///
    /// # Errors
    ///
    /// When no kernel would take it: too many bytes, or a NUL in one of its strings.
    pub(super) fn new(run: &Run) -> Result<Self, NotStarted> {
        let argv = [&run.program].into_iter().chain(&run.args);
        let argv = block(argv.map(|arg| [arg.as_bytes()]))?;
        let env = run.env.encode()?;
        let cwd = block(run.cwd.iter().map(|cwd| [cwd.as_os_str().as_bytes()]))?;
        let candidates = program::candidates(run);
        let candidates = block(candidates.iter().map(|candidate| [candidate.as_slice()]))?;
        let start = ToKeeper::Start(Box::new(Start {
            candidates: &candidates,
            argv: &argv,
            shared_env: env.shared,
            own_env: &env.own,
            cwd: &cwd,
            schedule: Schedule {
                warning: run.warning,
                timeout: run.timeout,
                term_signal: run.term_signal,
                kill_grace: run.kill_grace,
            },
            leftovers: run.leftovers,
            bounds: Bounds::from(&run.limits),
            rights: run.rights.clone(),
            has_stdin: !run.stdin.is_empty(),
        }));
        if argv.len() + env.shared.len() + env.own.len() > MAX_START / 2 {
            return Err(program::too_large(run));
        }
        let strings = [&candidates, &argv, env.shared, &env.own, &cwd];
        let size = ABOUT + strings.iter().map(|block| block.len()).sum::<usize>();
        Self::encode(start, size).map_err(|error| {
            let message = format!("the request for it could not be made: {error}");
            NotStarted::new(FailureKind::SpawnFailed, message)
        })
    }

    /// Encodes a request of about so many bytes.
    fn encode(start: ToKeeper<'_>, size: usize) -> io::Result<Self> {
        let bytes = protocol::encode_sized(&start, size)?;
        if bytes.len() <= MAX_PACKET {
            return Ok(Self { bytes, file: None });
        }
        let ToKeeper::Start(start) = start else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let whole = protocol::encode(&start)?;
        let size = u32::try_from(whole.len()).map_err(io::Error::other)?;
        let mut file = fs::File::from(rustix::fs::memfd_create("synthex-request", MemfdFlags::CLOEXEC)?);
        file.write_all(&whole)?;
        Ok(Self {
            bytes: protocol::encode(&ToKeeper::StartInFile(size))?,
            file: Some(file.into()),
        })
    }

    /// Gives it to a keeper with the command's ends of its streams.
    ///
    /// # Errors
    ///
    /// When the keeper is dead.
    pub(super) fn send(&self, keeper: &Keeper, streams: &[OwnedFd]) -> io::Result<()> {
        let descriptors: Vec<BorrowedFd<'_>> = streams.iter().chain(&self.file).map(AsFd::as_fd).collect();
        keeper.start(&self.bytes, &descriptors)
    }
}

/// Bytes that a request seldom has more of, beside its strings.
const ABOUT: usize = 128;

/// Strings, each made of parts and ended by a NUL.
///
/// # Errors
///
/// When there is a NUL in one of them.
pub(super) fn block<'a, const PARTS: usize>(
    strings: impl Iterator<Item = [&'a [u8]; PARTS]> + Clone,
) -> Result<Vec<u8>, NotStarted> {
    let size = |parts: [&[u8]; PARTS]| parts.iter().map(|part| part.len()).sum::<usize>() + 1;
    let mut block = Vec::with_capacity(strings.clone().map(size).sum());
    for parts in strings {
        let start = block.len();
        parts.iter().for_each(|part| block.extend_from_slice(part));
        if block[start..].contains(&0) {
            let shown = program::shown(OsStr::from_bytes(&block[start..]));
            let message = format!("the command has a NUL in {shown}: no program can be given one");
            return Err(NotStarted::new(FailureKind::SpawnFailed, message).by(Fault::Command));
        }
        block.push(0);
    }
    Ok(block)
}
