//! Says where a command may write, whatever its user may (Landlock, `landlock(7)`).
//!
//! [`allow_writes`] builds the rules, in the process that will start the command; the child puts them on itself, after
//! `no_new_privs` and before exec, by `landlock_restrict_self(2)` with the descriptor. They hold for the command and
//! all it starts, and nothing takes them off again. A path is looked up when the rules are built, by the builder's
//! rights, and a symbolic link stands for what it points to.
//!
//! What the rules hold: opening files for writing, truncating, making, removing, linking and renaming, of files,
//! directories, links, pipes, sockets and devices. Beneath the paths given all of it is allowed, elsewhere none. A
//! rename from a path given to another is allowed, as long as it stays within them.
//!
//! What stays free everywhere:
//!
//! - reading, executing, changing the working directory;
//! - what was open before: the command's own streams;
//! - what Landlock does not know: owner, mode, times and extended attributes of a file, device control (`ioctl(2)`),
//!   sockets, signals;
//! - the devices without a memory, random numbers and terminals: see [`DEVICES`];
//! - `/dev/stdout` and the other names beneath `/proc/self/fd`, while a pipe, a socket or a terminal stands behind
//!   them. `/proc` itself is closed: a rule is bound to a directory that exists when it is made, and the child's own
//!   does not yet. A command that sets its `oom_score_adj`, or writes `/dev/shm`, needs those paths among its own.
//!
//! Of this a kernel holds what it knows, and the rules are the strictest it knows. Before Linux 6.2 (ABI 3),
//! `truncate(2)`, and `open(2)` that truncates but does not write, are free everywhere. Before Linux 5.19 (ABI 2) a
//! file cannot be renamed or linked into another directory at all, not even within a path given. A kernel without
//! Landlock (before 5.13, or left out at its start) holds nothing, and is an error: never a command without its rules.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError,
};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::Errno;

/// The last ABI that added a right to write: ABI 5 added device control, which needs no rule where any device but
/// [`DEVICES`] can be opened for reading alone, and ABI 9 connecting to a socket.
const WRITE_ABI: ABI = ABI::V3;

/// What may always be written: it keeps nothing, or is the command's own terminal.
pub(super) const DEVICES: [&str; 8] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/pts",
];

/// Rules that could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum LandlockError {
    /// The kernel has no Landlock.
    #[error(
        "restrict where commands may write: this kernel has no Landlock; run Linux 5.13 or later with `landlock` in \
         its lsm= parameter, or leave out `writable`"
    )]
    Unsupported,
    /// A path cannot be opened.
    #[error("allow writes beneath {}: {source}; name a path that exists", .path.display())]
    Path {
        /// As it was given.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// The kernel refused them.
    #[error("make the rules of where commands may write: {0}")]
    Rules(#[from] RulesetError),
}

/// Builds rules that allow writes beneath `paths` and to [`DEVICES`] alone. A path may be a directory or a file.
///
/// The descriptor is closed on exec. A child puts the rules on itself by `landlock_restrict_self(fd, 0)`, which needs
/// `no_new_privs` or `CAP_SYS_ADMIN`.
///
/// # Errors
///
/// When a path does not exist or may not be looked up, and when the kernel has no Landlock.
pub(super) fn allow_writes(paths: &[PathBuf]) -> Result<OwnedFd, LandlockError> {
    Option::<OwnedFd>::from(rules(paths)?).ok_or(LandlockError::Unsupported)
}

fn rules(paths: &[PathBuf]) -> Result<RulesetCreated, LandlockError> {
    let mut rules = empty_rules()?;
    // A device that is not there, or out of reach, cannot be written by the command either.
    for device in DEVICES.iter().filter_map(|device| look_up(Path::new(device)).ok()) {
        rules = allow(rules, device)?;
    }
    for path in paths {
        let found = look_up(path).map_err(|source| LandlockError::Path {
            path: path.clone(),
            source,
        })?;
        rules = allow(rules, found)?;
    }
    Ok(rules)
}

/// Rules that allow no write at all. Without a kernel that has Landlock, they have no descriptor.
fn empty_rules() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_write(WRITE_ABI))?
        .create()
}

/// The latest ABI that this kernel holds rules of writing by, up to the last one that added to them; `None` without
/// Landlock.
pub(super) fn abi() -> Option<u8> {
    let holds = |abi: ABI| {
        let rules = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_write(abi));
        rules.and_then(Ruleset::create).is_ok()
    };
    let abis = [(ABI::V3, 3), (ABI::V2, 2), (ABI::V1, 1)];
    abis.into_iter().find(|(abi, _)| holds(*abi)).map(|(_, number)| number)
}

/// A hold on what is at `path`, which takes no right to read or write it and does not open the device.
fn look_up(path: &Path) -> Result<Target, Errno> {
    let fd = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let kind = FileType::from_raw_mode(fstat(&fd)?.st_mode);
    // The kernel refuses a rule that grants what only a directory has to anything else.
    let rights = match kind {
        FileType::Directory => AccessFs::from_write(WRITE_ABI),
        _ => AccessFs::from_write(WRITE_ABI) & AccessFs::from_file(WRITE_ABI),
    };
    Ok(Target { fd, rights })
}

/// What a rule is about.
struct Target {
    fd: OwnedFd,
    rights: BitFlags<AccessFs>,
}

fn allow(rules: RulesetCreated, target: Target) -> Result<RulesetCreated, RulesetError> {
    rules.add_rule(PathBeneath::new(target.fd, target.rights))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;
    use std::process::{Command, Stdio};
    use std::thread;

    use rustix::io::{FdFlags, fcntl_getfd};

    use super::*;

    /// Runs a shell script that may write beneath `paths` alone, and returns its output, of both streams.
    fn run(paths: &[PathBuf], script: &str) -> String {
        let (mut read, write) = std::io::pipe().unwrap();
        let rules = rules(paths).unwrap();
        // The rules are a thread's, and a child has those of the thread that starts it.
        let status = thread::scope(|scope| {
            let start = || {
                rules.restrict_self().unwrap();
                Command::new("/bin/sh")
                    .args(["-c", script])
                    .current_dir("/")
                    .stdin(Stdio::null())
                    .stdout(write.try_clone().unwrap())
                    .stderr(write)
                    .status()
            };
            scope.spawn(start).join().unwrap()
        });
        let mut output = String::new();
        read.read_to_string(&mut output).unwrap();
        format!("{output}{}", status.unwrap())
    }

    /// A folder with one that may be written, `in`, and one that may not, `out`, which holds `file`.
    fn folders() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let (inside, outside) = (folder.path().join("in"), folder.path().join("out"));
        fs::create_dir(&inside).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "kept").unwrap();
        (folder, inside, outside)
    }

    /// Checks that the script ends well.
    fn allows(paths: &[PathBuf], script: &str) {
        let got = run(paths, &format!("set -e; {script}"));
        assert_eq!(got, "exit status: 0", "{script}");
    }

    /// Checks that the script is refused for the lack of a right, by error number and not by accident.
    fn refuses(paths: &[PathBuf], script: &str) {
        let got = run(paths, script);
        assert!(
            got.contains("Permission denied") || got.contains("cross-device"),
            "{script}: {got}"
        );
        assert!(!got.contains("exit status: 0"), "{script}: {got}");
    }

    #[test]
    fn everything_is_allowed_beneath_a_path_given() {
        let (_folder, inside, _) = folders();
        let at = inside.display();
        allows(
            std::slice::from_ref(&inside),
            &format!(
                "cd {at}; echo a >a; echo b >>a; mkdir -p d/e; mv a d/e/a; ln d/e/a b; ln -s b c; mkfifo p; mv d f; \
                 truncate -s 0 b; : >b; rm -r f p c b"
            ),
        );
        assert_eq!(fs::read_dir(&inside).unwrap().count(), 0);
    }

    #[test]
    fn nothing_is_written_elsewhere() {
        let (_folder, inside, outside) = folders();
        let (paths, at, from) = (vec![inside.clone()], outside.display(), inside.display());
        fs::write(inside.join("mine"), "mine").unwrap();
        for script in [
            format!("echo x >{at}/new"),
            format!("echo x >{at}/file"),
            format!("echo x >>{at}/file"),
            format!("truncate -s 0 {at}/file"),
            format!("rm {at}/file"),
            format!("mkdir {at}/dir"),
            format!("mkfifo {at}/pipe"),
            format!("ln -s x {at}/link"),
            format!("mv {at}/file {at}/other"),
            format!("mv {from}/mine {at}/mine"),
            format!("ln {at}/file {from}/hard"),
            "echo 0 >/proc/self/oom_score_adj".to_owned(),
        ] {
            refuses(&paths, &script);
        }
        let left: Vec<_> = fs::read_dir(&outside)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["file"]);
        assert_eq!(fs::read(outside.join("file")).unwrap(), b"kept");
    }

    #[test]
    fn opening_to_read_truncates_nothing_elsewhere() {
        let (_folder, inside, outside) = folders();
        let file = outside.join("file");
        let rules = rules(&[inside]).unwrap();
        let truncated = thread::scope(|scope| {
            let open_it = || {
                rules.restrict_self().unwrap();
                open(&file, OFlags::RDONLY | OFlags::TRUNC | OFlags::CLOEXEC, Mode::empty())
            };
            scope.spawn(open_it).join().unwrap()
        });
        assert_eq!(
            truncated.unwrap_err(),
            Errno::ACCESS,
            "needs Linux 6.2 (Landlock ABI 3)"
        );
        assert_eq!(fs::read(&file).unwrap(), b"kept");
    }

    #[test]
    fn reading_devices_and_streams_stay_free() {
        let (_folder, _, outside) = folders();
        let got = run(
            &[],
            &format!(
                "cat {}/file >/dev/null && echo a >/dev/stdout && echo b >/dev/stderr && echo c >/proc/self/fd/1 && \
                 head -c 1 /dev/zero >/dev/zero && echo d | cat >/dev/fd/1",
                outside.display()
            ),
        );
        assert_eq!(got, "a\nb\nc\nd\nexit status: 0");
    }

    #[test]
    fn a_path_may_be_a_file_or_a_link() {
        let (folder, inside, outside) = folders();
        let link = folder.path().join("link");
        symlink(&inside, &link).unwrap();
        let file = outside.join("file");
        let paths = [link, file.clone()];
        allows(
            &paths,
            &format!("echo x >{}/new; echo new >{}", inside.display(), file.display()),
        );
        refuses(&paths, &format!("rm {}", file.display()));
        assert_eq!(fs::read(&file).unwrap(), b"new\n");
    }

    #[test]
    fn a_path_that_is_not_there_is_named() {
        let error = allow_writes(&["/nowhere/at all".into()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "allow writes beneath /nowhere/at all: No such file or directory (os error 2); name a path that exists"
        );
    }

    #[test]
    fn the_descriptor_is_closed_on_exec() {
        let fd = allow_writes(&["/tmp".into()]).unwrap();
        assert_eq!(fcntl_getfd(&fd).unwrap(), FdFlags::CLOEXEC);
    }
}
