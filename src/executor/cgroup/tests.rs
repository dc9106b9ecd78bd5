//! A tree of plain files stands in for the memory and pids controllers, which few test machines hand out; what needs no
//! controller is shown on the kernel's own tree, where there is one that may be changed.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::fstat;
use tempfile::TempDir;

use super::super::limits::Bounds;
use super::*;
use crate::message::{Enforcer, LimitsApplied, SignalName};

const SOON: Duration = Duration::from_secs(60);

/// What the kernel puts into a new group.
fn fill(group: &Path, files: &[(&str, &str)]) {
    fs::create_dir_all(group).unwrap();
    for (name, text) in files {
        fs::write(group.join(name), text).unwrap();
    }
}

/// A group with controllers, in the place of one that was delegated.
fn fake_root(controllers: &str) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let files = [
        ("cgroup.controllers", controllers),
        ("cgroup.subtree_control", ""),
        ("cgroup.procs", ""),
    ];
    fill(root.path(), &files);
    fill(&root.path().join(WORKER), &[("cgroup.procs", ""), ("cgroup.kill", "")]);
    root
}

/// An empty group beneath it, which has the files of both controllers whether they are used or not.
fn fake_group(memory: bool, pids: bool) -> (TempDir, PathBuf, JobGroup) {
    let root = fake_root("cpu memory pids");
    let domain = Domain {
        root: root.path().to_path_buf(),
        memory,
        pids,
    };
    let path = domain.group_path(1);
    fill(
        &path,
        &[
            ("cgroup.events", "populated 0\nfrozen 0\n"),
            ("cgroup.kill", ""),
            ("memory.max", "max"),
            ("memory.swap.max", "max"),
            ("memory.oom.group", "0"),
            (
                "memory.events",
                "low 0\nhigh 0\nmax 7\noom 2\noom_kill 3\noom_group_kill 1\n",
            ),
            ("pids.max", "max"),
        ],
    );
    let group = JobGroup::open(&domain, path.clone()).unwrap();
    (root, path, group)
}

fn limits(memory: Option<u64>, processes: Option<u64>) -> Bounds {
    Bounds {
        memory,
        processes,
        ..Bounds::default()
    }
}

/// `/proc/self` of a process in the group `group`, where `point` is the mount of all groups.
fn fake_proc(group: &str, point: &Path) -> TempDir {
    let proc_self = tempfile::tempdir().unwrap();
    let mounts = format!(
        "22 1 8:1 / / rw - ext4 /dev/sda rw\n31 22 0:26 / {} rw shared:4 - cgroup2 cgroup2 rw\n",
        point.display()
    );
    fill(
        proc_self.path(),
        &[
            ("cgroup", &format!("1:name=systemd:/x\n0::{group}\n")),
            ("mountinfo", &mounts),
        ],
    );
    proc_self
}

fn find(choice: &Choice, proc_self: &Path, delegated: &[&Path]) -> Option<PathBuf> {
    let look_at = |path: &Path| {
        Ok(Facts {
            is_cgroup2: true,
            is_delegated: delegated.contains(&path),
            is_writable: true,
        })
    };
    Delegation::find_in(choice, proc_self, look_at)
        .unwrap()
        .map(|found| found.root)
}

fn read(path: &Path, name: &str) -> String {
    fs::read_to_string(path.join(name)).unwrap()
}

#[test]
fn our_own_group_is_found_if_it_was_delegated() {
    let point = tempfile::tempdir().unwrap();
    let own = point.path().join("system.slice/synthex.service");
    fs::create_dir_all(&own).unwrap();
    let proc_self = fake_proc("/system.slice/synthex.service", point.path());
    let slice = own.parent().unwrap();
    assert_eq!(find(&Choice::Auto, proc_self.path(), &[&own]), Some(own.clone()));
    assert_eq!(find(&Choice::Auto, proc_self.path(), &[]), None);
    assert_eq!(find(&Choice::Auto, proc_self.path(), &[slice]), None, "somebody else's");
    assert_eq!(find(&Choice::None, proc_self.path(), &[&own]), None);
}

#[test]
fn a_worker_that_is_in_its_leaf_already_finds_the_group_above() {
    let point = tempfile::tempdir().unwrap();
    let unit = point.path().join("synthex.service");
    fs::create_dir_all(unit.join(WORKER)).unwrap();
    let proc_self = fake_proc("/synthex.service/worker", point.path());
    assert_eq!(find(&Choice::Auto, proc_self.path(), &[&unit]), Some(unit));
}

#[test]
fn no_group_is_found_where_none_is_mounted() {
    let point = tempfile::tempdir().unwrap();
    let proc_self = fake_proc("/gone", point.path());
    assert_eq!(
        find(&Choice::Auto, proc_self.path(), &[&point.path().join("gone")]),
        None
    );
    assert_eq!(find(&Choice::Auto, Path::new("/nowhere"), &[]), None);
}

#[test]
fn a_group_that_was_named_must_be_one_that_we_can_use() {
    let error = |path: &Path, is_writable| {
        let look_at = |path: &Path| {
            Ok(Facts {
                is_cgroup2: path.ends_with("cg"),
                is_delegated: false,
                is_writable,
            })
        };
        let choice = Choice::Path(path.to_path_buf());
        Delegation::find_in(&choice, Path::new("/nowhere"), look_at).map(|found| found.map(|found| found.root))
    };
    let folder = tempfile::tempdir().unwrap();
    let cg = fs::canonicalize(folder.path()).unwrap().join("cg");
    fs::create_dir(&cg).unwrap();
    assert_eq!(error(&cg, true).unwrap(), Some(cg.clone()));
    let remedy =
        "name a cgroup v2 directory that is the worker's to change, or let systemd delegate one (Delegate=yes)";
    for (path, is_writable, reason) in [
        (cg.as_path(), false, "it may not be changed by this user"),
        (folder.path(), true, "it is not a cgroup v2 directory"),
        (Path::new("/no/where"), true, "No such file or directory (os error 2)"),
    ] {
        let text = format!("use {} as the cgroup of jobs: {reason}; {remedy}", path.display());
        assert_eq!(error(path, is_writable).unwrap_err().to_string(), text);
    }
}

#[test]
fn a_folder_is_no_group() {
    let folder = tempfile::tempdir().unwrap();
    let error = Delegation::find(&Choice::Path(folder.path().to_path_buf())).unwrap_err();
    assert!(error.to_string().contains("it is not a cgroup v2 directory"), "{error}");
}

#[test]
fn a_worker_moves_into_its_leaf_and_enables_what_there_is() {
    for (controllers, memory, pids) in [
        ("cpu memory pids", true, true),
        ("pids", false, true),
        ("", false, false),
    ] {
        let root = fake_root(controllers);
        let delegation = Delegation {
            root: root.path().to_path_buf(),
            own: Some(root.path().to_path_buf()),
        };
        let claim = delegation.prepare().unwrap();
        assert_eq!(
            (claim.domain.memory, claim.domain.pids),
            (memory, pids),
            "{controllers}"
        );
        assert_eq!(
            read(&root.path().join(WORKER), "cgroup.procs"),
            std::process::id().to_string()
        );
        let missing = [("memory", memory), ("pids", pids)].map(|(name, there)| (!there).then_some(name));
        let named = |error: &CgroupError| matches!(error, CgroupError::NoController { .. });
        assert_eq!(claim.problems.len(), missing.iter().flatten().count());
        assert!(claim.problems.iter().all(named), "{:?}", claim.problems);
        let enabled = if pids { "+pids" } else { "" };
        assert_eq!(read(root.path(), "cgroup.subtree_control"), enabled);
    }
}

#[test]
fn a_worker_that_is_in_a_leaf_stays_there() {
    let root = fake_root("");
    let own = root.path().join("leaf");
    fill(&own, &[("cgroup.procs", ""), ("cgroup.kill", "")]);
    let delegation = Delegation {
        root: root.path().to_path_buf(),
        own: Some(own.clone()),
    };
    delegation.prepare().unwrap();
    assert_eq!(read(&own, "cgroup.procs"), "");
    assert_eq!(read(&root.path().join(WORKER), "cgroup.procs"), "");
}

#[test]
fn a_kernel_without_kill_is_told() {
    let root = fake_root("");
    fs::remove_file(root.path().join("worker/cgroup.kill")).unwrap();
    let delegation = Delegation {
        root: root.path().to_path_buf(),
        own: None,
    };
    let text = delegation.prepare().unwrap_err().to_string();
    let file = root.path().join("worker/cgroup.kill");
    assert_eq!(
        text,
        format!("kill by cgroup: {} is missing; run Linux 5.14 or later", file.display())
    );
}

#[test]
fn limits_are_set_and_lifted_for_the_next_job() {
    let (_root, path, mut group) = fake_group(true, true);
    let files = ["memory.max", "memory.swap.max", "memory.oom.group", "pids.max"];
    let values = || files.map(|name| read(&path, name));
    let applied = group.apply(&limits(Some(64 << 20), Some(10))).unwrap();
    let held = Some(Enforcer::Cgroup);
    assert_eq!(
        (applied.memory, applied.processes, applied.open_files),
        (held, held, None)
    );
    assert_eq!(values(), ["67108864", "0", "1", "10"]);
    let applied = group.apply(&limits(None, Some(3))).unwrap();
    assert_eq!((applied.memory, applied.processes), (None, held));
    assert_eq!(values(), ["max", "max", "1", "3"]);
    assert_eq!(group.apply(&Bounds::default()).unwrap(), LimitsApplied::default());
    assert_eq!(values(), ["max", "max", "1", "max"]);
}

#[test]
fn a_group_without_controllers_leaves_limits_to_others() {
    let (_root, path, mut group) = fake_group(false, false);
    let applied = group.apply(&limits(Some(64 << 20), Some(10))).unwrap();
    assert_eq!(applied, LimitsApplied::default());
    assert_eq!(
        (read(&path, "memory.max"), read(&path, "pids.max")),
        ("max".into(), "max".into())
    );
    assert_eq!(group.oom_kills().unwrap(), 0);
}

#[test]
fn kills_for_lack_of_memory_are_counted_for_each_job() {
    let (_root, path, mut group) = fake_group(true, true);
    group.apply(&limits(Some(1 << 20), None)).unwrap();
    assert_eq!(group.oom_kills().unwrap(), 0, "those of jobs before do not count");
    fs::write(
        path.join("memory.events"),
        "max 9\noom 4\noom_kill 5\noom_group_kill 2\n",
    )
    .unwrap();
    assert_eq!(group.oom_kills().unwrap(), 2);
    group.apply(&limits(Some(1 << 20), None)).unwrap();
    assert_eq!(group.oom_kills().unwrap(), 0);
}

#[test]
fn out_of_memory_is_a_kill_by_the_kernel_and_no_other() {
    assert!(is_out_of_memory(1, Some(SignalName::KILL)));
    assert!(!is_out_of_memory(0, Some(SignalName::KILL)), "somebody else's");
    assert!(!is_out_of_memory(1, Some(SignalName::TERM)));
    assert!(!is_out_of_memory(1, None), "it had exited before");
}

#[test]
fn what_older_kernels_lack_is_left_out_and_anything_else_is_named() {
    let (_root, path, mut group) = fake_group(true, true);
    fs::remove_file(path.join("memory.swap.max")).unwrap();
    group.apply(&limits(Some(1 << 20), None)).unwrap();
    fs::remove_file(path.join("pids.max")).unwrap();
    let text = group.apply(&limits(None, Some(5))).unwrap_err().to_string();
    let file = path.join("pids.max");
    assert_eq!(
        text,
        format!(
            "write \"5\" to {}: No such file or directory (os error 2)",
            file.display()
        )
    );
}

#[test]
fn a_group_that_stays_populated_holds_nobody_up() {
    let (_root, path, mut group) = fake_group(true, true);
    assert!(group.is_empty().unwrap());
    for events in ["populated 1\nfrozen 0\n", "frozen 0\n"] {
        fs::write(path.join("cgroup.events"), events).unwrap();
        assert!(!group.is_empty().unwrap(), "{events}");
        assert!(!group.wait_empty(Duration::from_millis(5)).unwrap());
    }
    group.kill().unwrap();
    assert_eq!(read(&path, "cgroup.kill"), "1");
}

#[test]
fn a_domain_is_handed_to_other_processes_as_it_is() {
    let domain = Domain {
        root: "/sys/fs/cgroup/a b".into(),
        memory: true,
        pids: false,
    };
    let text = serde_json::to_string(&domain).unwrap();
    assert_eq!(serde_json::from_str::<Domain>(&text).unwrap(), domain);
}

/// A new group on the kernel's own tree, ended and removed on drop.
struct RealRoot(PathBuf);

impl RealRoot {
    /// `None`, and says why, where no group can be made or no process be moved into one.
    fn new(name: &str) -> Option<Self> {
        let mounts = fs::read("/proc/self/mountinfo").unwrap();
        let mounts = mounts.split(|byte| *byte == b'\n').filter_map(own::mount);
        let points = mounts.map(|(_, point)| point);
        let found = own::find(Path::new("/proc/self"))
            .into_iter()
            .chain(points)
            .find_map(|above| {
                let root = Self(above.join(format!("synthex-test-{name}-{}", std::process::id())));
                fs::create_dir(&root.0).ok()?;
                let mut child = Command::new("true").stdin(Stdio::null()).spawn().unwrap();
                let moved = enter(&root.0, &child);
                child.wait().unwrap();
                moved.is_ok().then_some(root)
            });
        if found.is_none() {
            eprintln!("nothing is shown here: no cgroup v2 directory that may be changed is mounted");
        }
        found
    }
}

impl Drop for RealRoot {
    fn drop(&mut self) {
        let _ = group::kill(&self.0);
        let _ = group::wait_empty(&self.0, SOON);
        let _ = group::remove(&self.0);
    }
}

fn enter(group: &Path, child: &Child) -> Result<(), CgroupError> {
    files::write(&group.join("cgroup.procs"), &child.id().to_string())
}

/// Starts a script inside a group, and waits until it has said so.
fn start(group: &Path, script: &str) -> Child {
    let mut child = Command::new("/bin/sh")
        .args(["-c", &format!("read go; {script}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    enter(group, &child).unwrap();
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "ready\n");
    child
}

fn count(group: &Path) -> usize {
    read(group, "cgroup.procs").lines().count()
}

/// A daemon by double fork, a session of its own, a stopped process, and one that ignores what it can.
const TREE: &str = "(setsid sh -c 'trap \"\" TERM HUP INT; sleep 1000 & sleep 1000' >&- &); setsid sleep 1000 >&- & \
                    sh -c 'kill -STOP $$' >&- & echo ready; exec sleep 1000 >&-";

#[test]
fn the_kernel_kills_a_whole_tree_and_the_group_is_used_again() {
    let Some(root) = RealRoot::new("kill") else { return };
    let domain = Domain {
        root: root.0.clone(),
        memory: false,
        pids: false,
    };
    let mut group = JobGroup::create(&domain, 1).unwrap();
    let path = domain.group_path(1);
    for _ in 0..3 {
        assert_eq!(
            group.apply(&limits(Some(1 << 30), None)).unwrap(),
            LimitsApplied::default()
        );
        assert!(group.is_empty().unwrap());
        let mut leader = start(&path, TREE);
        assert!(!group.is_empty().unwrap());
        assert!(count(&path) >= 4, "{}", read(&path, "cgroup.procs"));
        group.kill().unwrap();
        assert!(group.wait_empty(SOON).unwrap());
        assert_eq!((count(&path), leader.wait().unwrap().signal()), (0, Some(9)));
    }
    drop(group);
    assert!(!path.exists());
}

#[test]
fn a_group_is_used_again_until_it_was_killed() {
    let Some(root) = RealRoot::new("again") else { return };
    let domain = Domain {
        root: root.0.clone(),
        memory: false,
        pids: false,
    };
    let mut group = JobGroup::create(&domain, 1).unwrap();
    let mut next = |killed: bool| {
        if killed {
            group.kill().unwrap();
        }
        group.apply(&Bounds::default()).unwrap();
        let at_path = fs::metadata(domain.group_path(1)).unwrap().ino();
        assert_eq!(fstat(group.directory()).unwrap().st_ino, at_path);
        at_path
    };
    let first = next(false);
    assert_eq!(next(false), first);
    assert_ne!(next(true), first, "the kernel would kill what is started in it");
}

#[test]
fn a_group_that_a_job_tampered_with_is_made_anew() {
    let Some(root) = RealRoot::new("renew") else { return };
    let domain = Domain {
        root: root.0.clone(),
        memory: false,
        pids: false,
    };
    let mut group = JobGroup::create(&domain, 1).unwrap();
    let path = domain.group_path(1);
    fs::create_dir_all(path.join("a/b")).unwrap();
    group.apply(&Bounds::default()).unwrap();
    assert!(!path.join("a").exists());
    files::write(&path.join("cgroup.freeze"), "1").unwrap();
    group.apply(&Bounds::default()).unwrap();
    assert_eq!(read(&path, "cgroup.freeze"), "0\n");
    let mut left = start(&path, "echo ready; exec sleep 1000 >&-");
    group.apply(&Bounds::default()).unwrap();
    assert_eq!(
        left.wait().unwrap().signal(),
        Some(9),
        "nothing of one job is there in the next"
    );
    assert!(group.is_empty().unwrap());
}

#[test]
fn a_start_ends_what_an_earlier_worker_left_and_keeps_others_out() {
    let Some(root) = RealRoot::new("start") else { return };
    let found = || Delegation {
        root: root.0.clone(),
        own: Some(root.0.clone()),
    };
    let job = |name: &str| {
        let group = root.0.join(name);
        fs::create_dir(&group).unwrap();
        start(&group, "echo ready; exec sleep 1000 >&-")
    };
    let mut worker = Command::new("sleep").arg("1000").spawn().unwrap();
    enter(&root.0, &worker).unwrap();
    let (mut killed, mut foreign, mut allowed) = (job("job-1"), job("job-x"), job("job-2"));
    fs::create_dir(root.0.join("job-1/inside")).unwrap();
    let domain = Domain {
        root: root.0.clone(),
        memory: false,
        pids: false,
    };
    let keeper = JobGroup::open(&domain, domain.group_path(2)).unwrap();
    keeper.keep().unwrap();

    let claim = found().prepare_for(Pid::from_child(&worker)).unwrap();
    assert_eq!(read(&root.0.join(WORKER), "cgroup.procs"), format!("{}\n", worker.id()));
    assert_eq!(
        (read(&root.0, "cgroup.procs"), root.0.join("job-1").exists()),
        (String::new(), false)
    );
    assert_eq!(killed.wait().unwrap().signal(), Some(9));
    assert_eq!((count(&root.0.join("job-x")), count(&root.0.join("job-2"))), (1, 1));
    assert!(matches!(JobGroup::create(&claim.domain, 2), Err(CgroupError::Kept(_))));
    assert!(!claim.domain.end_group(2, Duration::ZERO).unwrap());

    let second = found().prepare_for(Pid::from_child(&worker)).unwrap_err();
    assert!(matches!(second, CgroupError::InUse(_)), "{second}");
    drop(claim);
    found().prepare_for(Pid::from_child(&worker)).unwrap();
    for child in [&mut worker, &mut foreign, &mut allowed] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn the_group_of_a_dead_owner_is_ended_by_its_number() {
    let Some(root) = RealRoot::new("end") else { return };
    let domain = Domain {
        root: root.0.clone(),
        memory: false,
        pids: false,
    };
    let path = domain.group_path(7);
    fs::create_dir(&path).unwrap();
    let mut left = start(&path, TREE);
    assert!(domain.end_group(7, SOON).unwrap());
    assert_eq!((path.exists(), left.wait().unwrap().signal()), (false, Some(9)));
    assert!(domain.end_group(7, Duration::ZERO).unwrap(), "there is none");
}

#[test]
fn a_group_of_the_same_number_is_replaced() {
    let Some(root) = RealRoot::new("replace") else { return };
    let domain = Domain {
        root: root.0.clone(),
        memory: false,
        pids: false,
    };
    let path = domain.group_path(3);
    fs::create_dir(&path).unwrap();
    let mut left = start(&path, "echo ready; exec sleep 1000 >&-");
    let group = JobGroup::create(&domain, 3).unwrap();
    assert!(group.is_empty().unwrap());
    assert_eq!(left.wait().unwrap().signal(), Some(9));
}
