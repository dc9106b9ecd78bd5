//! One outbox file: written by the one process that holds its lock.
//!
//! Invariants: what [`Journal::append`] has said `Ok` to is on disk; the file is at most as long as allowed, records of
//! confirmation included; it is empty whenever no parcel in it is live.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::SpoolError;
use super::format::{self, CONFIRMED_BYTES, FormatError, HEADER, Place};
use crate::worker::parcel::Parcel;

/// Nobody else reads what commands printed.
const PRIVATE: u32 = 0o600;

pub(super) struct Journal {
    path: PathBuf,
    file: File,
    live: BTreeMap<u64, Place>,
    /// Where the next record goes; 0 before there is a header.
    end: u64,
    /// The number of the next parcel. Never given twice, not even after a failure.
    next: u64,
}

impl Journal {
    /// Makes an empty file that nobody else has. `Ok(None)` when another process took it over before it was locked.
    pub(super) fn create(path: &Path) -> io::Result<Option<Self>> {
        let file = options().create_new(true).mode(PRIVATE).open(path)?;
        if !lock(&file)? {
            return Ok(None);
        }
        Ok(Some(Self {
            path: path.to_owned(),
            file,
            live: BTreeMap::new(),
            end: 0,
            next: 0,
        }))
    }

    /// Takes over a file whose owner is gone; `Ok(None)` when it has an owner, or was removed meanwhile. What is no
    /// record is cut off, and that is logged.
    pub(super) fn take_over(path: &Path) -> Result<Option<Self>, SpoolError> {
        let failed = |error: FormatError| SpoolError::Read {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let io_failed = |error: io::Error| failed(FormatError::Io(error));
        let file = match options().open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_failed(error)),
        };
        let metadata = file.metadata().map_err(io_failed)?;
        if !metadata.is_file() {
            return Err(io_failed(io::Error::other("it is no regular file")));
        }
        if !lock(&file).map_err(io_failed)? {
            return Ok(None);
        }
        let length = file.metadata().map_err(io_failed)?.len();
        let contents = format::scan(&mut BufReader::new(&file), length).map_err(failed)?;
        for range in &contents.damage {
            let bytes = range.end - range.start;
            tracing::warn!(file = %path.display(), offset = range.start, bytes, "damaged part of an outbox file passed over; its jobs come again");
        }
        if contents.end < length {
            file.set_len(contents.end).map_err(io_failed)?;
        }
        Ok(Some(Self {
            path: path.to_owned(),
            file,
            live: contents.live,
            end: contents.end,
            next: contents.next,
        }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How long the file is.
    pub(super) fn bytes(&self) -> u64 {
        self.end
    }

    /// How many parcels are live.
    pub(super) fn records(&self) -> usize {
        self.live.len()
    }

    /// The live parcels in the order in which they were written, with their keys.
    pub(super) fn live(&self) -> impl Iterator<Item = (u64, u128)> {
        self.live.iter().map(|(number, place)| (*number, place.key))
    }

    /// Writes parcels with one sync for all of them. The number of each, or why it is not on disk.
    pub(super) fn append(&mut self, parcels: &[Parcel], max_bytes: u64) -> Vec<Result<u64, SpoolError>> {
        let (start, first) = (self.end, self.next);
        let written: Vec<_> = parcels.iter().map(|parcel| self.write(parcel, max_bytes)).collect();
        if !written.iter().any(Result::is_ok) {
            return written;
        }
        match self.file.sync_data() {
            Ok(()) => written,
            Err(error) => {
                self.live.split_off(&first);
                self.cut(start);
                let error = self.failed(error);
                written.into_iter().map(|_| Err(error.clone())).collect()
            }
        }
    }

    fn write(&mut self, parcel: &Parcel, max_bytes: u64) -> Result<u64, SpoolError> {
        let number = self.next;
        self.next += 1;
        let record = format::parcel_record(number, parcel).map_err(|error| self.failed(io::Error::other(error)))?;
        let bytes = record.len() as u64;
        // Each parcel needs the room in which it will be confirmed.
        let confirmations = (self.live.len() as u64 + 1) * CONFIRMED_BYTES;
        let end = self.end.max(HEADER.len() as u64) + bytes;
        if end + confirmations > max_bytes {
            return Err(SpoolError::Full {
                path: self.path.clone(),
            });
        }
        if self.end == 0 {
            self.put(HEADER)?;
        }
        let (offset, key) = (self.end, parcel.key);
        self.put(&record)?;
        self.live.insert(number, Place { offset, bytes, key });
        Ok(number)
    }

    /// Writes at the end. What fails half-way is no part of the file, and the next record takes its place.
    fn put(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        if let Err(error) = self.file.write_all_at(bytes, self.end) {
            self.cut(self.end);
            return Err(self.failed(error));
        }
        self.end += bytes.len() as u64;
        Ok(())
    }

    fn cut(&mut self, end: u64) {
        self.end = end;
        // A tail that stays is overwritten by the next record, or passed over as damage.
        let _ = self.file.set_len(end);
    }

    /// Ends a parcel's life. No sync: one that comes back after a power failure is sent twice, under the same
    /// `message_id`.
    pub(super) fn confirm(&mut self, number: u64) -> Result<(), SpoolError> {
        if self.live.remove(&number).is_none() {
            return Ok(());
        }
        if self.live.is_empty() {
            self.file.set_len(0).map_err(|error| self.failed(error))?;
            self.end = 0;
            return Ok(());
        }
        let record = format::confirmed_record(number).map_err(|error| self.failed(io::Error::other(error)))?;
        self.put(&record)
    }

    /// Reads a live parcel; `None` when it is no longer live.
    pub(super) fn read(&self, number: u64) -> Result<Option<Parcel>, SpoolError> {
        let Some(place) = self.live.get(&number) else {
            return Ok(None);
        };
        let read = || {
            // Not longer than the file: so it was found.
            let mut record = vec![0; usize::try_from(place.bytes).unwrap_or(usize::MAX)];
            self.file.read_exact_at(&mut record, place.offset)?;
            format::parcel(place, &record)
        };
        read().map(Some).map_err(|error: FormatError| SpoolError::Read {
            path: self.path.clone(),
            reason: error.to_string(),
        })
    }

    /// Removes the file, while it is still locked.
    pub(super) fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }

    fn failed(&self, source: io::Error) -> SpoolError {
        SpoolError::Write {
            path: self.path.clone(),
            source: Arc::new(source),
        }
    }
}

/// To read and write a file that must be one: no link to another, no pipe to wait at.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

/// Locks a file for this process until it ends (`flock(2)`); false when another process has it, or has removed it.
fn lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(file.metadata()?.nlink() > 0),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests;
