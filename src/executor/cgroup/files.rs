//! Reads and writes the small files of groups, with a bound and an error that names the file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::CgroupError;

/// Most bytes read of a file: far more than any that is read here has, which is one page.
const MAX_BYTES: u64 = 64 << 10;

/// Most directories of a group that are looked at.
const MAX_DIRECTORIES: usize = 65_536;

pub(super) fn failed(action: impl Into<String>, path: &Path, source: impl Into<io::Error>) -> CgroupError {
    CgroupError::File {
        action: action.into(),
        path: path.to_path_buf(),
        source: source.into(),
    }
}

/// What helps against an error whose text does not say it.
pub(super) fn remedy(path: &Path, error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::BUSY) if path.ends_with("cgroup.subtree_control") => {
            "; other processes are in the group: start the worker as its only one"
        }
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => {
            "; start the worker inside a cgroup that is delegated to its user (systemd: Delegate=yes)"
        }
        _ => "",
    }
}

pub(super) fn read(path: &Path) -> Result<String, CgroupError> {
    let read = || {
        let mut text = String::new();
        File::open(path)?.take(MAX_BYTES).read_to_string(&mut text)?;
        Ok(text)
    };
    read().map_err(|error: io::Error| failed("read", path, error))
}

/// Reads a file again that is kept open.
pub(super) fn read_again(file: &File, path: &Path) -> Result<String, CgroupError> {
    let mut text = [0; 4096];
    let length = file
        .read_at(&mut text, 0)
        .map_err(|error| failed("read", path, error))?;
    Ok(String::from_utf8_lossy(&text[..length]).into_owned())
}

/// Writes a value to a file that is there.
pub(super) fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|error| failed(format!("write {value:?} to"), path, error))
}

/// Makes a directory, if it is not there.
pub(super) fn make_directory(path: &Path) -> Result<(), CgroupError> {
    match fs::DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(failed("make cgroup", path, error)),
        _ => Ok(()),
    }
}

/// The directories in a directory.
pub(super) fn directories(path: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let list = || {
        fs::read_dir(path)?
            .filter(|entry| match entry {
                Ok(entry) => entry.file_type().is_ok_and(|kind| kind.is_dir()),
                Err(_) => true,
            })
            .take(MAX_DIRECTORIES)
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<Vec<PathBuf>>>()
    };
    list().map_err(|error| failed("list", path, error))
}

/// The number behind `key` in a file of lines `key number`.
pub(super) fn value_of(text: &str, key: &str) -> Option<u64> {
    let (_, value) = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)?;
    value.trim().parse().ok()
}
