//! `--output-dir DIR`: what each job wrote, in a file for each stream.
//!
//! `000012-nightly-12.stdout` is of the twelfth item, whose job has the id `nightly:12`. A file is there with all of its
//! content or not at all: it is written under another name (`.000012-….tmp`) and renamed. A job that runs again puts its
//! new output in the place of the old one, and what was written before a resume is written again over itself.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::batch::{Finished, Sink};
use crate::message::{JobId, Output};
use crate::transport::BoxFuture;

/// Digits of an item's place at least, so that names sort as items do.
const DIGITS: usize = 6;
/// Most characters of an id in a name: a file's name has at most 255 bytes.
const MAX_ID: usize = 128;

/// A folder that gets the output of each job.
pub struct OutputDir {
    folder: PathBuf,
    files: Vec<(String, Bytes)>,
}

impl OutputDir {
    /// Makes the folder, if it is not there.
    ///
    /// # Errors
    /// When it cannot be made, or is none.
    pub async fn create(folder: &Path) -> io::Result<Self> {
        tokio::fs::create_dir_all(folder)
            .await
            .map_err(|error| io::Error::new(error.kind(), format!("failed to make {}: {error}", folder.display())))?;
        Ok(Self {
            folder: folder.to_owned(),
            files: Vec::new(),
        })
    }
}

/// The name of a job's files, without what tells the stream.
fn name(seq: u64, id: &JobId) -> String {
    let safe = |c: char| {
        if c.is_ascii_alphanumeric() || c == '.' || c == '_' {
            c
        } else {
            '-'
        }
    };
    let id: String = id.as_str().chars().take(MAX_ID).map(safe).collect();
    format!("{seq:0DIGITS$}-{id}")
}

fn content(output: &Output) -> io::Result<Bytes> {
    let bytes = output.decode().map_err(io::Error::other)?;
    Ok(Bytes::copy_from_slice(&bytes))
}

impl Sink for OutputDir {
    fn take(&mut self, finished: &Finished<'_>) -> io::Result<()> {
        let name = name(finished.seq, &finished.result.job_id);
        self.files
            .push((format!("{name}.stdout"), content(&finished.result.stdout)?));
        self.files
            .push((format!("{name}.stderr"), content(&finished.result.stderr)?));
        Ok(())
    }

    fn flush(&mut self) -> BoxFuture<'_, io::Result<()>> {
        let files = std::mem::take(&mut self.files);
        let folder = self.folder.clone();
        Box::pin(async move {
            if files.is_empty() {
                return Ok(());
            }
            let written = tokio::task::spawn_blocking(move || {
                files
                    .iter()
                    .try_for_each(|(name, content)| write(&folder, name, content))
            });
            written.await.map_err(io::Error::other)?
        })
    }
}

fn write(folder: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let (to, under_way) = (folder.join(name), folder.join(format!(".{name}.tmp")));
    std::fs::write(&under_way, content)
        .and_then(|()| std::fs::rename(&under_way, &to))
        .map_err(|error| io::Error::new(error.kind(), format!("failed to write {}: {error}", to.display())))
}

#[cfg(test)]
mod tests;
