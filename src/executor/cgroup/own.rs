//! Finds the directory of the group that this process is in.
//!
//! `/proc/self/cgroup` has its path within the hierarchy, `/proc/self/mountinfo` says where a part of the hierarchy is
//! mounted: both are needed, as in a container the mount need not begin at the top, nor at `/sys/fs/cgroup`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Most bytes read of the list of mounts. A host of many containers has some thousand, of a few hundred bytes each.
const MAX_BYTES: u64 = 4 << 20;

/// The directory of our own group, `None` where it has none that is mounted and reachable.
pub(super) fn find(proc_self: &Path) -> Option<PathBuf> {
    let group = group(&read(&proc_self.join("cgroup")).ok()?)?;
    let mounts = read(&proc_self.join("mountinfo")).ok()?;
    mounts
        .split(|byte| *byte == b'\n')
        .filter_map(mount)
        .filter_map(|(top, point)| Some(point.join(group.strip_prefix(top).ok()?)))
        .find(|path| path.is_dir())
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The path in the line `0::/path`, which is that of cgroup v2. A path that leads out of the process's namespace
/// (`/../x`) is none that it can use.
fn group(lines: &[u8]) -> Option<PathBuf> {
    let path = lines
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"0::"))?;
    let path = PathBuf::from(OsString::from_vec(path.to_vec()));
    (path.is_absolute() && !path.starts_with("/..")).then_some(path)
}

/// What is mounted of the hierarchy, and where, if the line of `mountinfo` is a mount of cgroup v2
/// (`proc_pid_mountinfo(5)`: id, parent, device, top, point, options, any number of fields, `-`, type).
pub(super) fn mount(line: &[u8]) -> Option<(PathBuf, PathBuf)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let top = fields.nth(3)?;
    let point = fields.next()?;
    fields.find(|field| *field == b"-")?;
    let path = |field| PathBuf::from(OsString::from_vec(unescape(field)));
    (fields.next()? == b"cgroup2").then(|| (path(top), path(point)))
}

/// Reads `\040` as the space it stands for, and so on.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let code = tail.first_chunk::<3>().filter(|_| *first == b'\\');
        let byte = code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 8).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[3..] } else { tail };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_that_of_version_2() {
        let group = |lines: &str| group(lines.as_bytes());
        assert_eq!(group("0::/a/b c\n"), Some("/a/b c".into()));
        assert_eq!(group("9:name=systemd:/x\n4:memory:/y\n0::/\n"), Some("/".into()));
        assert_eq!(group("4:memory:/y\n"), None);
        assert_eq!(group("0::/../other\n"), None);
        assert_eq!(group(""), None);
    }

    #[test]
    fn mounts_of_version_2_are_read_and_others_are_not() {
        let mount = |line: &str| mount(line.as_bytes());
        assert_eq!(
            mount("31 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 master:1 - cgroup2 cgroup2 rw,nsdelegate"),
            Some(("/".into(), "/sys/fs/cgroup".into()))
        );
        assert_eq!(
            mount(r"31 23 0:26 /a\040b /mnt/c\134d rw - cgroup2 none rw"),
            Some(("/a b".into(), r"/mnt/c\d".into()))
        );
        assert_eq!(mount("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"), None);
        assert_eq!(mount("32 31 0:29 / /sys"), None);
        assert_eq!(mount(""), None);
    }

    #[test]
    fn a_trailing_backslash_stands_for_itself() {
        assert_eq!(unescape(br"a\04"), br"a\04");
        assert_eq!(unescape(br"\\999"), br"\\999");
    }
}
