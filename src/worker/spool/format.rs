//! The bytes of an outbox file, and how to read one that was cut off or damaged.
//!
//! ```text
//! header   "synthex outbox 1\n"
//! record   length u32 │ checksum u32 │ kind u8 │ number u64 │ key u128 │ parcel (postcard)
//! ```
//!
//! Numbers are little-endian. The length counts what follows the checksum; the checksum (CRC-32) covers the length and
//! all that it counts. A record of kind *parcel* lives until one of kind *confirmed* carries the same number; that one
//! has no key and no parcel.
//!
//! A file is only ever appended to, so damage is found by reading on: a record that is not whole ends the file, unless
//! its length leads to one that is. No byte can make the reader panic, allocate, or read anything twice.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::ops::Range;

use crate::worker::parcel::Parcel;

/// What a file begins with; another number in it is a format of another version.
pub(super) const HEADER: &[u8; 17] = b"synthex outbox 1\n";
/// What files of every version begin with.
const MAGIC: &[u8] = b"synthex outbox ";

/// Bytes of length and checksum.
const PREFIX: usize = 8;
/// Bytes of kind, number and key.
const TAG: usize = 25;
/// Bytes of a record of kind *confirmed*.
pub(super) const CONFIRMED_BYTES: u64 = (PREFIX + TAG) as u64;
/// Bytes that are read at once.
const CHUNK: usize = 8 * 1024;

const PARCEL: u8 = 0;
const CONFIRMED: u8 = 1;

/// Where a parcel is in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Of its record.
    pub(super) offset: u64,
    /// Of its record, all of it.
    pub(super) bytes: u64,
    pub(super) key: u128,
}

/// What a file holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// The parcels that are not confirmed, by number.
    pub(super) live: BTreeMap<u64, Place>,
    /// The end of the last whole record: where the next one goes.
    pub(super) end: u64,
    /// A number higher than all that were used.
    pub(super) next: u64,
    /// What is no record; the last of them may reach to the end of the file.
    pub(super) damage: Vec<Range<u64>>,
}

/// Why a file or a record of it cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FormatError {
    #[error("it is of another version of synthex")]
    Version,
    #[error("the record at byte {0} has changed since it was written")]
    Record(u64),
    #[error("the record has {0} bytes")]
    TooLarge(usize),
    #[error(transparent)]
    Parcel(#[from] postcard::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The record that holds a parcel.
pub(super) fn parcel_record(number: u64, parcel: &Parcel) -> Result<Vec<u8>, FormatError> {
    seal(postcard::to_extend(parcel, begin(PARCEL, number, parcel.key))?)
}

/// The record that ends a parcel's life.
pub(super) fn confirmed_record(number: u64) -> Result<Vec<u8>, FormatError> {
    seal(begin(CONFIRMED, number, 0))
}

/// Reads a parcel back from its record.
pub(super) fn parcel(place: &Place, record: &[u8]) -> Result<Parcel, FormatError> {
    let changed = || FormatError::Record(place.offset);
    let (prefix, rest) = record.split_at_checked(PREFIX).ok_or_else(changed)?;
    let length = prefix.first_chunk::<4>().ok_or_else(changed)?;
    let mut sum = checksum(*length);
    sum.update(rest);
    if prefix[4..] != sum.finalize().to_le_bytes() || rest.len() < TAG {
        return Err(changed());
    }
    let mut parcel: Parcel = postcard::from_bytes(&rest[TAG..])?;
    parcel.key = place.key;
    Ok(parcel)
}

fn begin(kind: u8, number: u64, key: u128) -> Vec<u8> {
    let mut record = vec![0; PREFIX];
    record.push(kind);
    record.extend(number.to_le_bytes());
    record.extend(key.to_le_bytes());
    record
}

fn seal(mut record: Vec<u8>) -> Result<Vec<u8>, FormatError> {
    let bytes = record.len() - PREFIX;
    let length = u32::try_from(bytes)
        .map_err(|_| FormatError::TooLarge(bytes))?
        .to_le_bytes();
    let mut sum = checksum(length);
    sum.update(&record[PREFIX..]);
    record[..4].copy_from_slice(&length);
    record[4..PREFIX].copy_from_slice(&sum.finalize().to_le_bytes());
    Ok(record)
}

fn checksum(length: [u8; 4]) -> crc32fast::Hasher {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&length);
    sum
}

/// Reads a file of `length` bytes to its end.
///
/// # Errors
/// When it cannot be read, or is of another version. Damage is no error.
pub(super) fn scan(file: &mut impl Read, length: u64) -> Result<Contents, FormatError> {
    let mut contents = Contents::default();
    let mut header = [0; HEADER.len()];
    let found = read_up_to(file, &mut header)?;
    if header[..found] != HEADER[..] {
        if header.starts_with(MAGIC) && found == HEADER.len() {
            return Err(FormatError::Version);
        }
        contents.damage.extend((length > 0).then_some(0..length)); // cut off before the first record, or never ours
        return Ok(contents);
    }
    let mut at = HEADER.len() as u64;
    contents.end = at;
    while at < length {
        match read_record(file, length - at)? {
            Step::Whole(tag, bytes) => {
                if at > contents.end {
                    contents.damage.push(contents.end..at);
                }
                contents.enter(&tag, at, bytes);
                at += bytes;
                contents.end = at;
            }
            Step::Damaged(bytes) => at += bytes,
            Step::Lost => at = length,
        }
    }
    if contents.end < length {
        contents.damage.push(contents.end..length);
    }
    Ok(contents)
}

/// What stands before a record's parcel.
struct Tag {
    kind: u8,
    number: u64,
    key: u128,
}

enum Step {
    /// A record of so many bytes.
    Whole(Tag, u64),
    /// So many bytes that are none, though their length may be right.
    Damaged(u64),
    /// Bytes that do not say where the next record is.
    Lost,
}

fn read_record(file: &mut impl Read, left: u64) -> io::Result<Step> {
    let (mut prefix, mut tag) = ([0; PREFIX], [0; TAG]);
    if read_up_to(file, &mut prefix)? < PREFIX {
        return Ok(Step::Lost);
    }
    let [a, b, c, d, sum @ ..] = prefix;
    let length = u32::from_le_bytes([a, b, c, d]);
    let bytes = u64::from(length) + PREFIX as u64;
    if (length as usize) < TAG || bytes > left || read_up_to(file, &mut tag)? < TAG {
        return Ok(Step::Lost);
    }
    let mut hasher = checksum([a, b, c, d]);
    hasher.update(&tag);
    if !hash_rest(file, length as usize - TAG, &mut hasher)? {
        return Ok(Step::Lost);
    }
    let tag = Tag::read(&tag);
    let is_whole = sum == hasher.finalize().to_le_bytes() && tag.kind <= CONFIRMED;
    Ok(if is_whole {
        Step::Whole(tag, bytes)
    } else {
        Step::Damaged(bytes)
    })
}

/// Reads so many bytes through the checksum; false at the end of the file.
fn hash_rest(file: &mut impl Read, mut left: usize, hasher: &mut crc32fast::Hasher) -> io::Result<bool> {
    let mut chunk = [0; CHUNK];
    while left > 0 {
        let wanted = left.min(CHUNK);
        if read_up_to(file, &mut chunk[..wanted])? < wanted {
            return Ok(false);
        }
        hasher.update(&chunk[..wanted]);
        left -= wanted;
    }
    Ok(true)
}

/// Fills `buffer` as far as the file goes.
fn read_up_to(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

impl Tag {
    fn read(bytes: &[u8; TAG]) -> Self {
        let (mut number, mut key) = ([0; 8], [0; 16]);
        number.copy_from_slice(&bytes[1..9]);
        key.copy_from_slice(&bytes[9..]);
        Self {
            kind: bytes[0],
            number: u64::from_le_bytes(number),
            key: u128::from_le_bytes(key),
        }
    }
}

impl Contents {
    fn enter(&mut self, tag: &Tag, offset: u64, bytes: u64) {
        if tag.kind == PARCEL {
            let key = tag.key;
            self.live.insert(tag.number, Place { offset, bytes, key });
        } else {
            self.live.remove(&tag.number);
        }
        self.next = self.next.max(tag.number.saturating_add(1));
    }
}

#[cfg(test)]
mod tests;
