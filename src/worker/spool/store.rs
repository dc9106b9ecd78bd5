//! The outbox files of one worker: its own, and those that it took over. All calls block.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::SpoolError;
use super::journal::Journal;
use crate::worker::parcel::Parcel;

/// What the names of outbox files end in.
const EXTENSION: &str = "outbox";
/// Nobody else looks into the folder.
const PRIVATE: u32 = 0o700;
/// How often a file of our own is made before it is a fault: each time, a worker that starts at the same moment has
/// taken it for one without an owner.
const TRIES: u32 = 16;

pub(super) struct Store {
    own: Journal,
    /// Those of workers that are gone; `None` where all was confirmed and the file removed.
    taken: Vec<Option<Journal>>,
    max_bytes: u64,
}

/// A parcel in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::worker) struct Entry {
    owner: Owner,
    number: u64,
}

/// A parcel that another worker left, and what it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::worker) struct Left {
    pub(in crate::worker) entry: Entry,
    pub(in crate::worker) pool: String,
    pub(in crate::worker) key: u128,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Us,
    Gone(usize),
}

impl Store {
    /// Makes the folder and our file in it, and takes over the files whose owners are gone.
    pub(super) fn open(folder: &Path, name: &str, max_bytes: u64) -> Result<Self, SpoolError> {
        let failed = |source: io::Error| SpoolError::Folder {
            path: folder.to_owned(),
            source: Arc::new(source),
        };
        prepare(folder).map_err(failed)?;
        let own = own_file(folder, name).map_err(failed)?;
        // Without this a power failure could take the file out of its folder.
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(failed)?;
        let paths = outbox_files(folder).map_err(failed)?;
        let mut taken = Vec::new();
        for path in paths.iter().filter(|path| *path != own.path()) {
            match Journal::take_over(path) {
                Ok(journal) => taken.extend(journal.map(Some)),
                Err(error) => tracing::warn!("failed to {error}; it is left as it is"),
            }
        }
        let mut store = Self { own, taken, max_bytes };
        (0..store.taken.len()).for_each(|index| store.remove_if_empty(index));
        Ok(store)
    }

    /// The parcels that others left. Each is read for a moment, to tell its pool.
    pub(super) fn left(&self) -> Vec<Left> {
        let mut left = Vec::new();
        for (index, journal) in self.taken.iter().enumerate() {
            for (number, key) in journal.iter().flat_map(Journal::live) {
                let owner = Owner::Gone(index);
                let entry = Entry { owner, number };
                // One that cannot be read is of no pool; who publishes it will say so.
                let parcel = self.read(entry).ok().flatten();
                let pool = parcel.map_or_else(String::new, |parcel| parcel.pool);
                left.push(Left { entry, pool, key });
            }
        }
        left
    }

    /// Writes parcels to our file, which may be as long as the others leave room for.
    pub(super) fn append(&mut self, parcels: &[Parcel]) -> Vec<Result<Entry, SpoolError>> {
        let others: u64 = self.taken.iter().flatten().map(Journal::bytes).sum();
        let written = self.own.append(parcels, self.max_bytes.saturating_sub(others));
        let owner = Owner::Us;
        let entry = |written: Result<u64, SpoolError>| written.map(|number| Entry { owner, number });
        written.into_iter().map(entry).collect()
    }

    /// Reads a parcel; `None` when it was confirmed already.
    pub(super) fn read(&self, entry: Entry) -> Result<Option<Parcel>, SpoolError> {
        let journal = match entry.owner {
            Owner::Us => Some(&self.own),
            Owner::Gone(index) => self.taken[index].as_ref(),
        };
        journal.map_or(Ok(None), |journal| journal.read(entry.number))
    }

    /// Lets a parcel go; and with its last one, a file that was taken over.
    pub(super) fn confirm(&mut self, entry: Entry) -> Result<(), SpoolError> {
        match entry.owner {
            Owner::Us => self.own.confirm(entry.number),
            Owner::Gone(index) => {
                let confirmed = match &mut self.taken[index] {
                    Some(journal) => journal.confirm(entry.number),
                    None => Ok(()),
                };
                self.remove_if_empty(index);
                confirmed
            }
        }
    }

    fn remove_if_empty(&mut self, index: usize) {
        if let Some(journal) = self.taken[index].take_if(|journal| journal.records() == 0) {
            let path = journal.path().to_owned();
            if let Err(error) = journal.remove() {
                tracing::warn!(file = %path.display(), "failed to remove an outbox file whose results are all published: {error}");
            }
        }
    }

    /// Parcels on disk that are not confirmed.
    pub(super) fn records(&self) -> usize {
        self.journals().map(Journal::records).sum()
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.journals().map(Journal::bytes).sum()
    }

    fn journals(&self) -> impl Iterator<Item = &Journal> {
        std::iter::once(&self.own).chain(self.taken.iter().flatten())
    }
}

/// A worker that ends leaves a file only if there is something in it.
impl Drop for Store {
    fn drop(&mut self) {
        if self.own.records() == 0 {
            // The next worker removes what this one cannot.
            let _ = fs::remove_file(self.own.path());
        }
    }
}

fn prepare(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(PRIVATE).create(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(PRIVATE))
}

fn own_file(folder: &Path, name: &str) -> io::Result<Journal> {
    for number in 0..TRIES {
        let path = folder.join(format!("{name}-{number}.{EXTENSION}"));
        if let Some(journal) = Journal::create(&path)? {
            return Ok(journal);
        }
    }
    Err(io::Error::other(
        "other workers take every file away that is made in it",
    ))
}

/// All outbox files of a folder, in the order of their names.
fn outbox_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension() == Some(OsStr::new(EXTENSION)) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests;
